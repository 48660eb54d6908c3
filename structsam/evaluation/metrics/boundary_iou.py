"""Boundary IoU (Cheng et al. 2021, section 4), as HQ-SAM reports it (Ke et al. 2023)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from structsam.evaluation.metrics.base import MaskMetric
from structsam.evaluation.metrics.crop import crop_to_objects
from structsam.mask_iou import mask_iou

_SHARE_OF_DIAGONAL = 0.02


def boundary_width(height: int, width: int) -> int:
    """Return the width of the boundary in pixels: 2 % of the image's diagonal, at least 1."""
    return max(1, round(_SHARE_OF_DIAGONAL * math.sqrt(height**2 + width**2)))


def inner_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a bool mask [H, W] that `width` erosions by a 3x3 square remove.

    Outside of the mask's array is background. The erosions are one by a square of 2 `width` + 1.
    """
    side = 2 * width + 1
    padded = np.pad(mask, width)
    return mask & ~_all_of_next(_all_of_next(padded, side).T, side).T


def _all_of_next(mask: np.ndarray, length: int) -> np.ndarray:
    """Say of rows [N, ...] where this one and the following are set, `length` in all.

    Doubles the number of rows that are known to be set: log2(`length`) steps. Returns
    [N - length + 1, ...].
    """
    known = 1
    while known < length:
        step = min(known, length - known)
        mask = mask[:-step] & mask[step:]
        known += step
    return mask


class BoundaryIoU(MaskMetric):
    """IoU of the two masks' inner boundaries, in 0..1.

    The boundary is what d erosions by a 3x3 square take away, d = max(1, round(0.02 * diagonal)),
    diagonal that of the whole image in pixels. Outside of the image is background, so an object
    at the image's border has a boundary there. A mask without boundary is empty: both: 1.0; one
    of them: 0.0.

    Squares of 5x5, one pixel apart; d = 1, so boundaries of 16 pixels of which 8 are in both:

    >>> predicted, truth = np.zeros((2, 9, 9), dtype=bool)
    >>> predicted[2:7, 2:7] = truth[2:7, 3:8] = True
    >>> round(BoundaryIoU()(predicted, truth), 4)  # 8 / 24
    0.3333
    """

    name: ClassVar[str] = "boundary_iou"
    title = "BIoU"

    def score(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """Return the intersection over union of the boundaries."""
        width = boundary_width(*predicted.shape)
        boundaries = (inner_boundary(mask, width) for mask in crop_to_objects(predicted, truth))
        return float(mask_iou(*boundaries))
