"""Dice similarity coefficient, as MedSAM reports it (Ma et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from structsam.evaluation.metrics.base import MaskMetric


class Dice(MaskMetric):
    """2 |A and B| / (|A| + |B|), in 0..1. Both masks empty: 1.0; one of them: 0.0.

    MedSAM's code has NaN for two empty masks; an annotated object is never empty here.

    Two of three pixels each are in both:

    >>> predicted = np.array([[True, True, True, False]])
    >>> round(Dice()(predicted, np.array([[False, True, True, True]])), 4)
    0.6667
    """

    name: ClassVar[str] = "dice"
    title = "Dice"

    def score(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """Return the Dice coefficient."""
        total = np.count_nonzero(predicted) + np.count_nonzero(truth)
        return 2 * np.count_nonzero(predicted & truth) / total if total else 1.0
