"""METRICS: every metric. A new one is one file here and one line in the dict."""

from __future__ import annotations

from structsam.errors import UserError
from structsam.evaluation.metrics.average_precision import AveragePrecision
from structsam.evaluation.metrics.base import Detection, MaskMetric, SetMetric
from structsam.evaluation.metrics.boundary_iou import BoundaryIoU
from structsam.evaluation.metrics.dice import Dice
from structsam.evaluation.metrics.disagreement import Disagreement
from structsam.evaluation.metrics.iou import IoU
from structsam.evaluation.metrics.nsd import NormalizedSurfaceDistance

METRICS: dict[str, type[MaskMetric] | type[SetMetric]] = {
    "iou": IoU,
    "boundary_iou": BoundaryIoU,
    "dice": Dice,
    "nsd": NormalizedSurfaceDistance,
    "disagreement": Disagreement,
    "ap": AveragePrecision,
}

__all__ = ["METRICS", "Detection", "MaskMetric", "SetMetric", "find_metric"]


def find_metric(name: str) -> type[MaskMetric] | type[SetMetric]:
    """Return the metric of that name; called without arguments it makes one as papers use it.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if not isinstance(name, str) or name not in METRICS:
        raise UserError(f"unknown metric {name!r}. Choose one of: {', '.join(METRICS)}")
    return METRICS[name]
