"""COCO's average precision of masks, by pycocotools (Lin et al. 2014)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, ClassVar, Literal

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.mask_rle import load_pycocotools, run_lengths
from structsam.evaluation.metrics.base import Detection, SetMetric

#: column: (IoU threshold, None for the mean over 0.5:0.05:0.95; areas).
_COLUMNS: dict[str, tuple[float | None, str]] = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}


class AveragePrecision(SetMetric):
    """AP, AP50, AP75, and AP of small, medium and large objects (up to 32^2, 96^2, more pixels).

    Each is the mean over categories and over recalls 0:0.01:1, in 0..1; NaN where the set has no
    object of that size. Predictions are matched with the annotated objects of the same image and
    category by pycocotools, whichever `Detection` they stand in. What matches a crowd region is
    neither right nor wrong. Equal scores are ranked by the names of the images, then as given.

    Args:
        max_detections: per image and category, best scores first: 100 in COCO, 300 in LVIS.

    Raises:
        UserError: sizes differ within an image, a damaged mask, a score that is no number, or
            pycocotools is missing.

    Two objects, one of them found: precision 1 at 51 of 101 recalls (0 to 0.5), else 0:

    >>> found = {"size": [2, 2], "counts": b"13"}
    >>> missed = {"size": [2, 2], "counts": b"013"}
    >>> rows = [Detection("a", "cat", found, 0.9, found), Detection("a", "cat", None, 0.0, missed)]
    >>> round(AveragePrecision()(rows)["AP"], 4)  # 51 / 101
    0.505
    """

    name: ClassVar[str] = "ap"
    title = "AP"

    def __init__(self, max_detections: int = 100) -> None:
        if max_detections < 1:
            raise UserError(f"max_detections is {max_detections}: give 1 or more (COCO: 100)")
        self.max_detections = max_detections

    def __call__(self, detections: Sequence[Detection]) -> dict[str, float]:
        """Return the columns AP, AP50, AP75, APs, APm and APl."""
        sizes = _image_sizes(detections)
        with redirect_stdout(io.StringIO()):  # pycocotools reports every step
            evaluator = load_pycocotools("cocoeval").COCOeval(
                _coco(detections, sizes, "truth"),
                _coco(detections, sizes, "predicted"),
                iouType="segm",
            )
            evaluator.params.maxDets = [self.max_detections]
            evaluator.evaluate()
            evaluator.accumulate()
        return {column: _mean(evaluator, *what) for column, what in _COLUMNS.items()}


def _mean(evaluator: Any, threshold: float | None, areas: str) -> float:
    """Mean precision over thresholds, recalls and the categories that have such objects."""
    parameters = evaluator.params
    precision = evaluator.eval["precision"][..., parameters.areaRngLbl.index(areas), 0]
    if threshold is not None:
        precision = precision[np.isclose(parameters.iouThrs, threshold)]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def _image_sizes(detections: Sequence[Detection]) -> dict[str, list[int]]:
    """Return [H, W] of every image, of which all masks must agree."""
    sizes: dict[str, list[int]] = {}
    for row in detections:
        if row.predicted is not None and not math.isfinite(row.score):
            raise UserError(f"image {row.image_id}: a score is {row.score}: give a finite number")
        for rle in (row.predicted, row.truth):
            if rle is None:
                continue
            size = sizes.setdefault(row.image_id, list(rle["size"]))
            if size != list(rle["size"]):
                raise UserError(
                    f"image {row.image_id} has masks of {size[0]}x{size[1]} and of "
                    f"{rle['size'][0]}x{rle['size'][1]} pixels: resize predictions to the "
                    "annotated masks"
                )
    return sizes


def _coco(
    detections: Sequence[Detection],
    sizes: dict[str, list[int]],
    side: Literal["truth", "predicted"],
) -> Any:
    """Return a `pycocotools.coco.COCO` of all truths, or of all predictions.

    Ids count from 1, in the order of the names: pycocotools takes the id 0 for none.
    """
    images = {name: number for number, name in enumerate(sorted(sizes), start=1)}
    names = sorted({row.category for row in detections})
    categories = {name: number for number, name in enumerate(names, start=1)}
    rows = [row for row in detections if getattr(row, side) is not None]
    coco = load_pycocotools("coco").COCO()
    coco.dataset = {
        "images": [
            {"id": number, "height": sizes[name][0], "width": sizes[name][1]}
            for name, number in images.items()
        ],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": images[row.image_id],
                "category_id": categories[row.category],
                **_annotation(row, side),
            }
            for number, row in enumerate(rows, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _annotation(row: Detection, side: Literal["truth", "predicted"]) -> dict[str, Any]:
    rle = getattr(row, side)
    pixels = int(run_lengths(rle["counts"], tuple(rle["size"]))[1::2].sum())
    if side == "truth":
        return {"segmentation": rle, "area": row.area or pixels, "iscrowd": int(row.crowd)}
    return {"segmentation": rle, "area": pixels, "score": row.score}
