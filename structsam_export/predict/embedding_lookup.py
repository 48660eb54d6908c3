"""Which file of a folder is a photo's embedding: the one that was made of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from structsam.errors import UserError
from structsam_export.bundle.features import Features
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import load_embedding, photo_of

_MAKE = "Make it with `structsam-export segment --save-embeddings`"


class EmbeddingLookup:
    """Embeddings that `segment` saved. Names only say where to look first.

    Args:
        given: the file of one photo, or the folder of those of many, and all below it.
        bundle: whose encoder made them.
    """

    def __init__(self, given: Path, bundle: Bundle) -> None:
        self._given, self._bundle = given, bundle
        self._known: dict[str, Path] = {}
        self._rest = given.rglob("*.npz") if given.is_dir() else iter(())
        self._left_out: list[str] = []

    def features(self, image: Path, photo: str) -> Features:
        """Return the feature maps of a photo, float32 [1, C, h, w].

        Args:
            image: its file.
            photo: its `photo_id`.

        Raises:
            UserError: none is there, it is of another photo or of another encoder, or damaged.
        """
        file = self._find(image, photo) if self._given.is_dir() else self._given
        if photo_of(file, self._bundle) != photo:
            raise UserError(
                f"{file} is of another photo than {image}, or the photo was changed since. {_MAKE}"
            )
        return load_embedding(file, self._bundle)[0]

    def _find(self, image: Path, photo: str) -> Path:
        """Look where `segment` puts it, `FOLDER/NAME.npz`, then into every file until it is found.

        Of a file by that name, which is of no use, the refusal is what the user should read.
        """
        named = [file for file in self._by_name(image) if file.is_file()]
        for file in named:
            if self._says(file) == photo:
                return file
        while photo not in self._known:
            further = next(self._rest, None)
            if further is not None:
                self._known.setdefault(self._says(further), further)
            elif named:
                return named[0]
            else:
                raise self._nothing(image)
        return self._known[photo]

    def _by_name(self, image: Path) -> Iterator[Path]:
        parts = image.parts[1:] if image.anchor else image.parts
        for start in reversed(range(len(parts))):
            yield self._given.joinpath(*parts[start:-1], f"{image.name}.npz")

    def _says(self, file: Path) -> str:
        """Return whose embedding a file is; no photo's where it cannot be used."""
        try:
            return photo_of(file, self._bundle)
        except UserError as error:
            self._left_out.append(str(error))
            return ""

    def _nothing(self, image: Path) -> UserError:
        other = f" ({self._left_out[0]})" if self._left_out else ""
        return UserError(f"no embedding of {image} in {self._given}{other}. {_MAKE}")
