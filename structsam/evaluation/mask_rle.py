"""Masks as COCO run lengths: a short text per mask, compared without decoding.

Runs go down the columns and alternate between background and object, background first; COCO's
compression writes them as ASCII text (Lin et al. 2014, `pycocotools.mask`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam.mask_runs import mask_of

#: Seven characters hold 35 bits: more than any run of an image.
_MOST_CHARACTERS_PER_RUN = 7


def load_pycocotools(module: str) -> Any:
    """Import `pycocotools.MODULE`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(f"pycocotools.{module}")
    except ImportError as error:
        raise UserError(
            f"COCO masks and average precision need pycocotools ({error}). "
            "Install it with `pip install 'structsam[eval]'`"
        ) from error


def encode(mask: np.ndarray) -> str:
    """Return the compressed COCO counts of a bool mask [H, W].

    Raises:
        UserError: not a bool array [H, W], or without a pixel.

    >>> encode(np.array([[False, True], [True, True]]))  # down the columns: 1 off, 3 on
    '13'
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2 or not mask.size:
        kind = getattr(mask, "dtype", type(mask).__name__)
        shape = list(getattr(mask, "shape", ()))
        raise UserError(f"a mask must be a bool array [H, W], not {kind} {shape}: use `mask > 0`")
    pixels = np.asfortranarray(mask).view(np.uint8)
    return str(load_pycocotools("mask").encode(pixels)["counts"], "ascii")


def decode(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Return the bool mask [H, W] of compressed COCO counts.

    Args:
        counts: what `encode` returned.
        size: (H, W).

    Raises:
        UserError: damaged text, or the text of a mask of another size.

    >>> decode("13", (2, 2)).tolist()
    [[False, True], [True, True]]
    """
    return mask_of(run_lengths(counts, size), size)


def rle_dict(counts: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the form in which pycocotools takes a mask; `size` is (H, W).

    >>> rle_dict("13", (2, 2))
    {'size': [2, 2], 'counts': b'13'}
    """
    height, width = size
    return {"size": [int(height), int(width)], "counts": counts.encode("ascii")}


def rle_iou(first: str, second: str, size: tuple[int, int]) -> float:
    """Return the intersection over union of two masks of size (H, W), in 0..1; both empty: 1.0.

    Takes time by the length of the texts, not by the number of pixels.

    Raises:
        UserError: damaged text, or the text of a mask of another size.

    >>> rle_iou("13", "04", (2, 2))  # three pixels of four
    0.75
    """
    areas = [run_lengths(counts, size)[1::2].sum() for counts in (first, second)]
    if not any(areas):
        return 1.0
    pair = rle_dict(first, size), rle_dict(second, size)
    return float(load_pycocotools("mask").iou([pair[0]], [pair[1]], [0])[0, 0])


def run_lengths(counts: str | bytes, size: tuple[int, int]) -> np.ndarray:
    """Return the runs int64 of compressed COCO counts: background, object, background, ...

    Where the runs do not fill the image pycocotools returns memory that nobody wrote, or never
    returns; so everything that comes from a file goes through here first.

    Raises:
        UserError: damaged text, or the text of a mask of another size.

    >>> run_lengths("13", (2, 2)).tolist()
    [1, 3]
    """
    runs = _parse(counts)
    height, width = size
    if runs is None or (runs < 0).any():
        raise UserError(
            f"damaged mask: {str(counts)[:40]!r} is no compressed COCO RLE; encode it again"
        )
    if runs.sum() != height * width:
        raise UserError(
            f"the mask's runs cover {runs.sum()} pixels, but its size {height}x{width} has "
            f"{height * width}: pass the (height, width) with which it was encoded"
        )
    return runs


def _parse(counts: str | bytes) -> np.ndarray | None:
    """Undo COCO's compression; None for what it never writes.

    Each character is 48 plus five bits, low ones first, plus 32 where the number goes on; the
    last bit of a number is its sign. From the fourth on, a number is the difference from the run
    of two before.
    """
    if not isinstance(counts, (str, bytes)):
        return None
    text = counts.encode("utf-8") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = codes & 32 == 0
    starts = np.flatnonzero(np.concatenate([[True], ends[:-1]]))
    digit = np.arange(codes.size) - np.repeat(starts, np.diff(starts, append=codes.size))
    if digit.max() >= _MOST_CHARACTERS_PER_RUN:
        return None
    runs = np.add.reduceat((codes & 31) << 5 * digit, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * (digit[ends] + 1), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
