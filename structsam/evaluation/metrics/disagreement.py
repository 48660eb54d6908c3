"""How far merging moved a mask: no annotation needed."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from structsam.evaluation.metrics.base import MaskMetric
from structsam.mask_iou import mask_iou


class Disagreement(MaskMetric):
    """1 - IoU with the unmerged model's mask for the same prompt, in 0..1; lower is better.

    Both masks empty: 0.0; one of them: 1.0.

    Two of four pixels are in both:

    >>> merged = np.array([[True, True, True, False]])
    >>> Disagreement()(merged, np.array([[False, True, True, True]]))
    0.5
    """

    name: ClassVar[str] = "disagreement"
    title = "disagreement"
    higher_is_better: ClassVar[bool] = False
    reference: ClassVar[Literal["truth", "unmerged"]] = "unmerged"

    def score(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """Return one minus the intersection over union; `truth` is the unmerged model's mask."""
        return 1.0 - float(mask_iou(predicted, truth))
