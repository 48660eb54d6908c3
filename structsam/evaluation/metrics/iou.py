"""Intersection over union (Jaccard index); its mean over objects or images is the mIoU."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from structsam.evaluation.metrics.base import MaskMetric


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    """Return |A and B| / |A or B| of two bool arrays, in 0..1; both empty: 1.0."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


class IoU(MaskMetric):
    """|A and B| / |A or B|, in 0..1. Both masks empty: 1.0; one of them: 0.0.

    Two of four pixels are in both:

    >>> predicted = np.array([[True, True, True, False]])
    >>> IoU()(predicted, np.array([[False, True, True, True]]))
    0.5
    """

    name: ClassVar[str] = "iou"
    title = "mIoU"

    def score(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """Return the intersection over union."""
        return intersection_over_union(predicted, truth)
