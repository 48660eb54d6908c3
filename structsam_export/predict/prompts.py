"""Points and boxes as users give them -> prompts as SAM's prompt encoder orders them.

Every check of a prompt is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.predict.preprocessing import ImageGeometry

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]

_PADDING, _BOX_CORNERS = -1.0, (2.0, 3.0)


@dataclass(frozen=True)
class AskedPrompts:
    """What `predict` asks of every photo.

    All points together are one prompt; every box is a prompt of its own; points with one box are
    one prompt together.

    Args:
        points: (x, y, label) in pixels of the upright image.
        boxes: (x0, y0, x1, y1) in pixels of the upright image.
        all_masks: all three masks of every prompt are wanted.

    Raises:
        UserError: points with several boxes.
    """

    points: tuple[Point, ...]
    boxes: tuple[Box, ...]
    all_masks: bool

    def __post_init__(self) -> None:
        if self.points and len(self.boxes) > 1:
            raise UserError(
                f"{len(self.points)} points with {len(self.boxes)} boxes: each box is a prompt of "
                "its own, so it is unclear which box the points belong to. Give one box with the "
                "points, or none"
            )

    @property
    def multimask(self) -> bool:
        """Whether the decoder's three masks are looked at: for one point, which is ambiguous."""
        return self.all_masks or (len(self.points) == 1 and not self.boxes)

    def arrays(self) -> dict[str, Any]:
        """Return the arguments of `Predictor.predict`."""
        coords = [(x, y) for x, y, _ in self.points] if self.points else None
        labels = [label for _, _, label in self.points] if self.points else None
        box = (self.boxes[0] if self.points else self.boxes) if self.boxes else None
        arrays = {"point_coords": coords, "point_labels": labels, "box": box}
        return {name: None if value is None else np.array(value) for name, value in arrays.items()}


def parse_point(text: str) -> Point:
    """Read `x,y` (foreground) or `x,y,label`, label 1 for foreground and 0 for background.

    Raises:
        UserError: anything else.
    """
    values = _numbers(text)
    if values is None or len(values) not in (2, 3) or values[2:] not in ([], [0.0], [1.0]):
        raise UserError(
            f"point {text!r} is not x,y or x,y,label with label 1 (foreground) or 0 (background). "
            "Write for example 450,300 or 450,300,0"
        )
    return values[0], values[1], int(values[2]) if len(values) == 3 else 1


def parse_box(text: str) -> Box:
    """Read `x0,y0,x1,y1`: the top left corner, then the bottom right one.

    Raises:
        UserError: anything else.
    """
    values = _numbers(text)
    if values is None or len(values) != 4:
        raise UserError(
            f"box {text!r} is not x0,y0,x1,y1. Write the top left corner, then the bottom right "
            "one, for example 100,50,400,300"
        )
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


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
