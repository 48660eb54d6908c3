"""Images and masks that belong together by name: listing, loading, and what has no partner."""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.datasets.base import Dataset
from structsam.evaluation.datasets.image_files import read_image
from structsam.evaluation.sample import ObjectMask, Problem, ProblemError, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
#: A JPEG changes the labels of a mask.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
#: Problems that one message names.
_MOST_NAMED = 3


@dataclass(frozen=True, eq=False)
class Annotation:
    """What a mask file says of its image.

    Args:
        objects: in a fixed order.
        problems: what was left out.
        valid: bool [H, W], or None where every pixel counts.
    """

    objects: Sequence[ObjectMask]
    problems: Sequence[Problem] = ()
    valid: np.ndarray | None = None


class PairedDataset(Dataset):
    """Every image has one file of annotations. A subclass calls `_take` and reads the annotation.

    Args:
        root: folder of the set.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._pairs: dict[str, tuple[Path, Path]] = {}

    def _take(
        self, images: Mapping[str, Path], masks: Mapping[str, Path], problems: Iterable[Problem]
    ) -> None:
        """Keep what has a partner, sorted by name, and note what has none.

        Raises:
            UserError: nothing is left.
        """
        lone = [
            Problem(name, "missing partner", f"{path.name} has no {partner}")
            for have, others, partner in ((images, masks, "mask"), (masks, images, "image"))
            for name, path in have.items()
            if name not in others
        ]
        self._pairs = {
            name: (images[name], masks[name]) for name in sorted(images) if name in masks
        }
        self.listing_problems = sorted([*problems, *lone], key=lambda p: (p.image_id, p.detail))
        if not self._pairs:
            found = "; ".join(p.detail for p in self.listing_problems[:_MOST_NAMED])
            raise UserError(
                f"{self.root} has no image with its mask ({found or 'no images at all'}). "
                f"Expected there:\n{self.layout}"
            )

    @property
    def image_ids(self) -> list[str]:
        """Names of all images with a mask, sorted."""
        return list(self._pairs)

    def load(self, image_id: str) -> Sample:
        """Decode one image and its masks.

        Where something is annotated but all of it is left out, the sample has no objects, and its
        problems say why.

        Raises:
            ProblemError: the image cannot be used.
            UserError: no image of that name.
        """
        if image_id not in self._pairs:
            raise UserError(f"{self.name} in {self.root} has no image {image_id!r}: see image_ids")
        image_path, mask_path = self._pairs[image_id]
        image = self._read_image(image_id, image_path)
        annotation = self._annotation(image_id, image, image_path, mask_path)
        return make_sample(image_id, image, annotation)

    def _read_image(self, image_id: str, path: Path) -> np.ndarray:
        return read_image(image_id, path)

    @abstractmethod
    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        """Read the objects of `image`, uint8 [H, W, 3].

        Raises:
            ProblemError: the image cannot be used.
        """


def make_sample(image_id: str, image: np.ndarray, annotation: Annotation) -> Sample:
    """Put a sample together.

    Raises:
        ProblemError: nothing is annotated.
    """
    nothing = Problem(image_id, "no object", "nothing is annotated in this image")
    problems = tuple(annotation.problems)
    if not annotation.objects:
        if not problems:
            raise ProblemError(nothing)
        problems += (Problem(image_id, "no object", "all that is annotated was left out"),)
    return Sample(image_id, image, tuple(annotation.objects), annotation.valid, problems)


def files_by_name(
    folder: Path, suffixes: Sequence[str], tail: str = "", prefix: str = ""
) -> tuple[dict[str, Path], list[Problem]]:
    """Map `prefix` + name to the files of `folder`; a file's name ends where `tail` begins.

    Names are in Unicode's composed form, so that they are the same on every file system. Hidden
    files, and files that are no images, are not looked at.

    Returns:
        the files, and a problem for each image file of a type not in `suffixes`, or whose name is
        already taken.

    Raises:
        UserError: the folder cannot be read.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in _image_files(folder, suffixes):
        stem = unicodedata.normalize("NFC", path.stem)
        if not stem.endswith(tail):
            continue  # the same folder holds other kinds of files
        name = prefix + stem.removesuffix(tail)
        if path.suffix.lower() not in suffixes:
            detail = f"{path.name} in {folder.name} is not {' or '.join(suffixes)}"
            problems.append(Problem(name, "missing partner", detail))
        elif name in found:
            detail = f"{path.name} has the name of {found[name].name}, which is used"
            problems.append(Problem(name, "missing partner", detail))
        else:
            found[name] = path
    return found, problems


def _image_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}. Check its permissions") from None
    known = {*suffixes, *IMAGE_SUFFIXES}
    return [p for p in paths if p.suffix.lower() in known and not p.name.startswith(".")]
