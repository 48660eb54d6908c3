"""What `SamAutomaticMaskGenerator` may be told: the same names, meanings and defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from structsam.errors import UserError
from structsam_export.predict.everything.coco_masks import load_mask_tools
from structsam_export.predict.everything.regions import load_ndimage

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
OUTPUT_MODES: tuple[OutputMode, ...] = get_args(OutputMode)


@dataclass(frozen=True)
class EverythingSettings:
    """How masks of everything are found.

    Args:
        points_per_side: points along each side of the photo; None where `point_grids` says which.
        points_per_batch: prompts that are decoded at once; the bundle's decoder has a limit of its
            own. No mask depends on it.
        pred_iou_thresh: masks whose predicted IoU is not above it are dropped; 0 keeps all.
        stability_score_thresh: the same for the IoU between the mask cut `stability_score_offset`
            above and below; masks below it are dropped.
        box_nms_thresh: of masks whose boxes have more IoU than this, the best one stays.
        crop_n_layers: further layers of crops, layer i of (2^i)^2; each crop is encoded anew.
        crop_nms_thresh: as `box_nms_thresh`, between crops; smaller crops win.
        crop_overlap_ratio: of the photo's short side, in layer 1; deeper layers overlap less.
        crop_n_points_downscale_factor: layer i has points_per_side / factor^i points a side.
        point_grids: (x, y) in 0..1, [N, 2] for every layer, instead of `points_per_side`.
        min_mask_region_area: pixels; smaller islands and holes are mended. Needs scipy.
        output_mode: `binary_mask` (bool [H, W]), `uncompressed_rle` or `coco_rle` (dicts of
            COCO's form; the latter needs pycocotools).

    Raises:
        UserError: a value that has no meaning.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[np.ndarray] | None = None
    min_mask_region_area: int = 0
    output_mode: OutputMode = "binary_mask"

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UserError(
                "exactly one of points_per_side and point_grids is needed. "
                "With grids of your own, pass points_per_side=None"
            )
        for name, least in (
            ("points_per_side", 1),
            ("points_per_batch", 1),
            ("crop_n_layers", 0),
            ("crop_n_points_downscale_factor", 1),
            ("min_mask_region_area", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{_named(name, value)} is below {least}. Choose {least} or more")
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "box_nms_thresh",
            "crop_nms_thresh",
            "crop_overlap_ratio",
        ):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{_named(name, value)} is outside of 0..1. Choose a share")
        if not (math.isfinite(self.stability_score_offset) and self.stability_score_offset >= 0):
            raise UserError(
                f"`stability_score_offset={self.stability_score_offset}` must be 0 or more"
            )
        if self.output_mode not in OUTPUT_MODES:
            raise UserError(
                f"`output_mode={self.output_mode}` is unknown. Choose one of: "
                f"{', '.join(OUTPUT_MODES)}"
            )
        self.grids()

    def grids(self) -> list[np.ndarray]:
        """Return the points of every layer, (x, y) in 0..1, float64 [N, 2] each.

        Raises:
            UserError: grids of one's own that are too few or no points of a photo; a layer in
                which no point is left.
        """
        if self.points_per_side is None:
            assert self.point_grids is not None
            return [_checked_grid(grid) for grid in self._enough(self.point_grids)]
        sides = [
            int(self.points_per_side / self.crop_n_points_downscale_factor**layer)
            for layer in range(self.crop_n_layers + 1)
        ]
        if min(sides) < 1:
            raise UserError(
                f"no point is left in crop layer {sides.index(0)}. Choose a smaller "
                f"`crop_n_points_downscale_factor={self.crop_n_points_downscale_factor}`"
            )
        return [point_grid(side) for side in sides]

    def _enough(self, grids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if len(grids) <= self.crop_n_layers:
            raise UserError(
                f"{len(grids)} point grids for the photo and {self.crop_n_layers} crop layers. "
                "Pass one for each"
            )
        return grids

    def require_packages(self) -> None:
        """Import what these settings need beside numpy: missing, it is missed before the work.

        Raises:
            UserError: scipy or pycocotools is not installed.
        """
        if self.min_mask_region_area:
            load_ndimage()
        if self.output_mode == "coco_rle":
            load_mask_tools()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        grids = self.point_grids
        told = None if grids is None else [np.asarray(grid).tolist() for grid in grids]
        return {**vars(self), "point_grids": told}


def _named(name: str, value: object) -> str:
    """Write a parameter as messages do."""
    return "`" + f"{name}={value}" + "`"


def point_grid(side: int) -> np.ndarray:
    """Return the centres of side x side cells, row by row, (x, y) in 0..1, float64 [side^2, 2]."""
    offset = 1 / (2 * side)
    centres = np.linspace(offset, 1 - offset, side)
    return np.stack([np.tile(centres, side), np.repeat(centres, side)], -1)


def _checked_grid(grid: np.ndarray) -> np.ndarray:
    points = np.asarray(grid, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise UserError(f"a point grid has shape {points.shape}, and should have [N, 2]")
    if not ((points >= 0) & (points < 1)).all():
        raise UserError("a point grid holds values outside of 0 <= value < 1. Divide by the size")
    return points
