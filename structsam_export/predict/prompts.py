"""Points and boxes as users give them -> prompts as SAM's prompt encoder orders them.

Every check of a prompt is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.predict.preprocessing import ImageGeometry

_PADDING, _BOX_CORNERS = -1.0, (2.0, 3.0)


@dataclass(frozen=True)
class Prompts:
    """P prompts as SAM's prompt encoder orders them, in pixels of the photo.

    Args:
        coords: float64 [P, K, 2], (x, y).
        labels: float32 [P, K]: 1 foreground, 0 background, 2 and 3 box corners, -1 padding.
        many: whether the caller passed a batch and gets one back.
    """

    coords: np.ndarray
    labels: np.ndarray
    many: bool


def read_prompts(
    point_coords: np.ndarray | None,
    point_labels: np.ndarray | None,
    box: np.ndarray | None,
    geometry: ImageGeometry,
) -> Prompts:
    """Check the prompts of `Predictor.predict` against the image, and put them in SAM's order.

    Points without a box are followed by one padding point, a box by none.

    Raises:
        UserError: no prompt, wrong shapes, values or labels, or outside the image.
    """
    boxes = None if box is None else _check_boxes(box, geometry)
    many_boxes = box is not None and np.ndim(box) == 2
    if point_coords is None:
        if point_labels is not None:
            raise UserError("point_labels came without point_coords. Pass both")
        if boxes is None:
            raise UserError("no prompt. Pass point_coords with point_labels, or box, or both")
        coords, labels, many = np.empty((len(boxes), 0, 2)), np.empty((len(boxes), 0)), many_boxes
    else:
        if point_labels is None:
            raise UserError("point_coords came without point_labels. Pass 1 or 0 for each point")
        coords, labels = _check_points(point_coords, point_labels, geometry)
        many = coords.ndim == 3
        coords, labels = (coords, labels) if many else (coords[None], labels[None])
    if boxes is None:
        last, last_labels = np.zeros((len(coords), 1, 2)), np.full((len(coords), 1), _PADDING)
    elif len(boxes) != len(coords) or many != many_boxes:
        raise UserError(
            f"points with coordinates {coords.shape if many else coords.shape[1:]} do not go with "
            f"box {np.shape(boxes if many_boxes else boxes[0])}. Pass [N, 2] with [4] for one "
            "prompt, or [P, K, 2] with [P, 4] for P prompts"
        )
    else:
        last, last_labels = boxes.reshape(-1, 2, 2), np.tile(_BOX_CORNERS, (len(boxes), 1))
    return Prompts(
        np.concatenate([coords, last], axis=1),
        np.concatenate([labels, last_labels], axis=1).astype(np.float32),
        many,
    )


def _check_points(
    coords: Any, labels: Any, geometry: ImageGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Return points [N, 2] or [P, K, 2] and their labels as float64, or raise a `UserError`."""
    points = check_numbers("point_coords", coords)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape:
        raise UserError(
            f"point_coords has shape {points.shape}, and should have [N, 2], or [P, K, 2] for P "
            "prompts. Write one point as [[x, y]]"
        )
    marks = check_numbers("point_labels", labels, points.shape[:-1])
    if not np.isin(marks, (0, 1)).all():
        raise UserError(
            f"point_labels holds {np.unique(marks).tolist()}, and should hold only 1 (foreground) "
            "and 0 (background). Pass a box as `box`"
        )
    height, width = geometry.original_size
    outside = (points < 0).any(-1) | (points[..., 0] >= width) | (points[..., 1] >= height)
    if outside.any():
        x, y = points[outside][0]
        raise UserError(
            f"point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels: "
            f"expected 0 <= x < {width} and 0 <= y < {height}. Give (x, y) in its pixels"
        )
    return points, marks


def _check_boxes(box: Any, geometry: ImageGeometry) -> np.ndarray:
    """Return one box [4] or many [P, 4] as float64 [P, 4], or raise a `UserError`."""
    boxes = check_numbers("box", box)
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or 0 in boxes.shape:
        raise UserError(
            f"box has shape {boxes.shape}, and should have [4], or [P, 4] for P prompts. "
            "Write a box as [x0, y0, x1, y1]"
        )
    boxes = boxes.reshape(-1, 4)
    height, width = geometry.original_size
    for x0, y0, x1, y1 in boxes:
        text = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
        if x1 <= x0 or y1 <= y0:
            raise UserError(
                f"{text} is empty or inverted: expected x0 < x1 and y0 < y1. Give the top left "
                "corner, then the bottom right one, not width and height"
            )
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UserError(
                f"{text} is outside the image of {width} x {height} pixels: expected x in "
                f"0..{width} and y in 0..{height}. Clip it to the image"
            )
    return boxes


def check_numbers(name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return `value` as float64, or raise a `UserError`: not finite numbers of that shape."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError(f"{name} is ragged. Give rows of the same length") from None
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{name} holds {array.dtype}, and should hold numbers. Pass a numeric array"
        )
    if shape is not None and array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}, and should have {shape}. Reshape it")
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds NaN or infinity. Pass finite numbers")
    return array.astype(np.float64)
