"""A detector's boxes as prompts: reading them, and finding the annotated object of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.datasets.coco_json import Box, Instance, corners, read_json
from structsam.evaluation.mask_rle import load_pycocotools

#: Least box IoU at which a detection is taken to mean an object (COCO's lowest threshold).
LEAST_IOU = 0.5


@dataclass(frozen=True)
class DetectedBox:
    """One detection: COCO's category id, (x0, y0, x1, y1) in pixels, and a confidence."""

    category: int
    box: Box
    score: float


def read_boxes(path: Path, categories: Mapping[int, str]) -> dict[int, list[DetectedBox]]:
    """Read COCO results, [{image_id, category_id, bbox, score}, ...], by COCO's image id.

    The boxes of an image come by falling score; equal scores keep the order of the file.

    Raises:
        UserError: unreadable, another format, or categories that the set does not have.
    """
    told = read_json(path)
    found: dict[int, list[DetectedBox]] = {}
    try:
        if not isinstance(told, list):
            raise TypeError(f"it holds a {type(told).__name__}, not a list")
        for entry in told:
            box = corners(entry["bbox"])
            detected = DetectedBox(int(entry["category_id"]), box, float(entry["score"]))
            if not np.isfinite(detected.score):
                raise ValueError(f"score {detected.score} is not finite")
            found.setdefault(int(entry["image_id"]), []).append(detected)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold COCO detections: {type(error).__name__} {error}. Expected "
            '[{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}]'
        ) from None
    unknown = {d.category for boxes in found.values() for d in boxes} - set(categories)
    if unknown:
        raise UserError(
            f"{path} has category ids that the annotations lack: {sorted(unknown)[:5]}. Detectors "
            "that count classes 0 to 79 need COCO's own ids (1 to 90)"
        )
    for boxes in found.values():
        boxes.sort(key=lambda detected: -detected.score)
    return found


def match(boxes: Sequence[DetectedBox], instances: Sequence[Instance]) -> list[int | None]:
    """Give every box the instance that it means, or None.

    In the order of `boxes`, each takes the instance of its category with the highest box IoU that
    no earlier box has taken, if that IoU is at least 0.5. So every instance has one box at most.
    Crowds are never taken.
    """
    found: list[int | None] = [None] * len(boxes)
    if not boxes or not instances:
        return found
    iou = load_pycocotools("mask").iou(
        _as_coco([d.box for d in boxes]),
        _as_coco([i.box for i in instances]),
        [0] * len(instances),
    )
    same = np.array([[d.category == i.category and not i.crowd for i in instances] for d in boxes])
    free = np.where(same, iou, 0.0)
    for number in range(len(boxes)):
        best = int(free[number].argmax())
        if free[number, best] >= LEAST_IOU:
            found[number] = best
            free[:, best] = 0.0
    return found


def _as_coco(boxes: Sequence[Box]) -> np.ndarray:
    """[N, 4] of x, y, width, height."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    array[:, 2:] -= array[:, :2]
    return array
