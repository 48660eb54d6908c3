"""Encoded images by id: the least recently used leave first, to disk where there is a folder."""

from __future__ import annotations

import io
import logging
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.predict.encoded_image import EncodedImage

_log = logging.getLogger("structsam_export")

_ID = re.compile(r"[0-9a-f]{32}")


class ImageCache:
    """Holds encoded images up to a number of bytes. Safe to use from several threads.

    Args:
        max_bytes: of all images in memory; the latest one is kept whatever its size.
        spill: folder for images that must leave memory; None drops them.
        max_spill_bytes: of all files there; the oldest are deleted.
        on_evict: told how many images left memory.
    """

    def __init__(
        self,
        max_bytes: int,
        spill: Path | None = None,
        max_spill_bytes: int = 0,
        on_evict: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.max_bytes, self.spill, self.max_spill_bytes = max_bytes, spill, max_spill_bytes
        self._on_evict = on_evict
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bytes(self) -> int:
        """Of all images in memory."""
        return self._bytes

    def get(self, image_id: str) -> EncodedImage | None:
        """Return an image and count it as used; one on disk comes back into memory."""
        with self._lock:
            if image_id in self._images:
                self._images.move_to_end(image_id)
                return self._images[image_id]
            image = self._read(image_id)
            if image is not None:
                self.put(image_id, image)
            return image

    def put(self, image_id: str, image: EncodedImage) -> None:
        """Keep an image; others leave where there is no room."""
        with self._lock:
            self._drop(image_id)
            self._images[image_id] = image
            self._bytes += image.nbytes
            left = 0
            while self._bytes > self.max_bytes and len(self._images) > 1:
                oldest = next(iter(self._images))
                self._write(oldest, self._images[oldest])
                self._drop(oldest)
                left += 1
        if left:
            self._on_evict(left)

    def remove(self, image_id: str) -> bool:
        """Forget an image, on disk too; return whether there was one."""
        with self._lock:
            known = self._drop(image_id)
            file = self._file(image_id)
            if file is not None and file.exists():
                file.unlink(missing_ok=True)
                known = True
        return known

    def clear(self) -> None:
        """Forget all images in memory, and free what they hold on a device."""
        with self._lock:
            self._images.clear()
            self._bytes = 0

    def _drop(self, image_id: str) -> bool:
        image = self._images.pop(image_id, None)
        self._bytes -= 0 if image is None else image.nbytes
        return image is not None

    def _file(self, image_id: str) -> Path | None:
        known = self.spill is not None and _ID.fullmatch(image_id)
        return self.spill / f"{image_id}.npz" if self.spill is not None and known else None

    def _write(self, image_id: str, image: EncodedImage) -> None:
        file = self._file(image_id)
        if file is None or file.exists():
            return
        buffer = io.BytesIO()
        try:
            np.savez(buffer, **image.to_arrays())  # type: ignore[arg-type]
            atomic.write_bytes(file, buffer.getvalue())
            self._make_room(file)
        except (OSError, UserError, RuntimeError) as error:  # a full disk, or host memory that
            # a device cannot copy to, loses speed, not results
            _log.warning("an image could not be kept in %s: %s", file.parent, error)

    def _make_room(self, latest: Path) -> None:
        files = sorted(latest.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if total <= self.max_spill_bytes or file == latest:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)

    def _read(self, image_id: str) -> EncodedImage | None:
        file = self._file(image_id)
        if file is None or not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return EncodedImage.from_arrays(dict(arrays))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            _log.warning("%s cannot be read, and is deleted: %s", file, error)
            file.unlink(missing_ok=True)
            return None
