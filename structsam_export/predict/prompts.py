"""Points and boxes as users give them -> prompts as SAM's prompt encoder orders them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from structsam.errors import UserError
from structsam_export.predict.preprocessing import ImageGeometry, check_boxes, check_points

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
    boxes = None if box is None else check_boxes(box, geometry)
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
        coords, labels = check_points(point_coords, point_labels, geometry)
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
