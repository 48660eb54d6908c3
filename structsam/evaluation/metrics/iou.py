"""Intersection over union (Jaccard index); its mean over objects or images is the mIoU."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from structsam.evaluation.metrics.base import MaskMetric
from structsam.mask_iou import mask_iou


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
        return float(mask_iou(predicted, truth))
