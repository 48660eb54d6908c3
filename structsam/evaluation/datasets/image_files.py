"""Reads images as RGB, and masks as labels. What cannot be read is a `ProblemError`.

Pixels are taken as they are stored: a rotation in the EXIF data is not applied, because masks are
drawn on, and belong to, the stored pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from structsam.evaluation.sample import Problem, ProblemError

_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image on its side


def read_image(image_id: str, path: Path) -> np.ndarray:
    """Return an image as uint8 RGB [H, W, 3].

    Grey is repeated, alpha is dropped, palettes are looked up. Of 16-bit grey 0..65535 becomes
    0..255, rounded.

    Raises:
        ProblemError: damaged, or with pixels that are neither 8 nor 16 bits.
    """
    with _opened(image_id, path) as image:
        if image.mode.startswith("I"):
            deep = np.array(image, np.int64)
            if deep.min() < 0 or deep.max() > 65535:
                raise unreadable(image_id, path, "its grey values exceed 16 bits")
            return np.repeat(((deep + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode == "F":
            raise unreadable(image_id, path, "its pixels are floating point: save 8 or 16 bits")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_labels(image_id: str, path: Path) -> tuple[np.ndarray, bool]:
    """Return the labels int32 [H, W] of a mask, and whether it has a palette.

    A palette image gives its indices, a black and white one 0 and 1. Colours are labels only where
    they are grey; alpha is dropped.

    Raises:
        ProblemError: damaged, coloured, or floating point.
    """
    with _opened(image_id, path) as image:
        if image.mode == "F":
            raise unreadable(image_id, path, "its labels are floating point: save whole numbers")
        pixels = np.array(image)
        if pixels.ndim == 3:
            if image.mode not in ("LA", "PA") and (pixels[..., :3] != pixels[..., :1]).any():
                raise unreadable(
                    image_id, path, "it is coloured: save labels as a grey or palette PNG"
                )
            pixels = pixels[..., 0]
        return pixels.astype(np.int32), image.mode in ("P", "PA")


def read_channels(image_id: str, path: Path) -> np.ndarray:
    """Return uint8 [H, W, 3] of a PNG whose colours are numbers.

    Raises:
        ProblemError: damaged, or no colour image.
    """
    with _opened(image_id, path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise unreadable(image_id, path, f"expected a colour image, found {image.mode}")
        return np.array(image)[..., :3]


def read_matte(image_id: str, path: Path) -> np.ndarray:
    """Return the first channel [H, W] of a mask of 0 to 255, palettes looked up.

    Raises:
        ProblemError: damaged.
    """
    with _opened(image_id, path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            return np.array(image)
        return np.array(image.convert("RGB"))[..., 0]


def require_same_size(
    image_id: str, image: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path
) -> None:
    """Compare an image [H, W, 3] with a mask [H, W].

    Raises:
        ProblemError: their sizes differ.
    """
    if image.shape[:2] == mask.shape[:2]:
        return
    sizes = " and ".join(
        f"{path.name} {pixels.shape[1]}x{pixels.shape[0]}"
        for path, pixels in ((image_path, image), (mask_path, mask))
    )
    turned = image.shape[1::-1] == mask.shape[:2] and _orientation(image_path) >= 5
    note = "; the mask fits the image turned by its EXIF tag, store the pixels turned"
    raise ProblemError(Problem(image_id, "sizes differ", sizes + (note if turned else "")))


def unreadable(image_id: str, path: Path, reason: str) -> ProblemError:
    """Make the error of a file that cannot be used."""
    return ProblemError(Problem(image_id, "unreadable", f"{path.name}: {reason}"))


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:
        return 1


@contextmanager
def _opened(image_id: str, path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.replace(str(path), path.name)
        raise unreadable(image_id, path, reason) from error
