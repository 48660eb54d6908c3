"""Masks in COCO's forms of run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from structsam.errors import UserError


def uncompressed_rle(runs: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's form with a list of numbers."""
    return {"size": list(size), "counts": runs.tolist()}


def coco_rle(runs: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's form with compressed counts as text, ready for JSON.

    Raises:
        UserError: pycocotools is not installed.
    """
    rle = load_mask_tools().frPyObjects(uncompressed_rle(runs, size), *size)
    return {"size": list(size), "counts": str(rle["counts"], "ascii")}


def load_mask_tools() -> Any:
    """Import `pycocotools.mask`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            f"compressed COCO masks need pycocotools ({error}). Install it with "
            "`pip install 'structsam[masks]'`, or choose `output_mode='uncompressed_rle'`"
        ) from error
    return mask
