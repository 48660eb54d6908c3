"""Embeddings that `segment --save-embeddings` left, by the photos they belong to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import load_embedding, photo_of
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.preprocessing import image_geometry
from structsam_export.runtimes.device_tensor import HostTensor

_log = logging.getLogger("structsam_export")


class SavedEmbeddings:
    """Finds a photo's embedding in a folder. Safe to use from several threads.

    The folder is listed once, in a thread of its own, because it may hold millions of files; what
    is not listed yet is not found yet.

    Args:
        bundle: whose encoder made them.

    Raises:
        UserError: no folder, no embeddings in it, or the first is damaged, of another encoder, or
            does not say whose it is; or a prompt-aware bundle, whose embeddings belong to boxes.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        if bundle.takes_box:
            raise UserError(
                f"{bundle.name} is prompt-aware: its embeddings belong to boxes, not to photos. "
                "Leave out `embeddings=`"
            )
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder}. Make one with `structsam-export segment --save-embeddings`"
            )
        self._bundle = bundle
        self._shapes = {spec.name: spec.shape for spec in bundle.features}
        files = folder.rglob("*.npz")
        first = next(files, None)
        if first is None:
            raise UserError(
                f"no embedding (.npz) in {folder}. Make them with `structsam-export segment "
                "--save-embeddings`"
            )
        self._files = {photo_of(first, bundle): first}
        self._thread = threading.Thread(target=self._list, args=(files,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when all of the folder is listed."""
        self._thread.join()

    def find(self, photo: str) -> EncodedImage | None:
        """Return the embedding of a photo as a kept image, float32, or None.

        Args:
            photo: as `photo_id` of its file.
        """
        file = self._files.get(photo)
        if file is None:
            return None
        try:
            features, (height, width) = load_embedding(file, self._bundle)
            for name, values in features.items():
                shape = self._shapes[name]
                if values.shape != shape or not np.isfinite(values).all():
                    raise UserError(
                        f"{file} is damaged: {values.shape}, not {shape}, or no numbers"
                    )
            geometry = image_geometry(height, width, self._bundle.preprocessing)
        except UserError as error:  # costs an encoder's run, not the answer
            _log.warning("%s", error)
            self._files.pop(photo, None)
            return None
        return EncodedImage(geometry, {n: HostTensor(values) for n, values in features.items()})

    def __contains__(self, photo: str) -> bool:
        return photo in self._files

    def _list(self, files: Iterator[Path]) -> None:
        try:
            for file in files:
                try:
                    self._files[photo_of(file, self._bundle)] = file
                except UserError as error:
                    _log.warning("left out: %s", error)
        except OSError as error:  # of the folder; what is listed by then is found
            _log.warning("embeddings are listed in part: %s", error)
