"""Crops of a photo: the photo itself, then layers of ever smaller ones that overlap."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from structsam.errors import UserError

Crop = tuple[int, int, int, int]

#: Pixels from a crop's edge within which a mask is taken for one that the crop cut off.
_NEAR_EDGE = 20


def crop_boxes(
    height: int, width: int, layers: int, overlap_ratio: float
) -> list[tuple[int, Crop]]:
    """Return (layer, (x0, y0, x1, y1)) of every crop; layer 0 is the photo.

    Raises:
        UserError: so many layers that a crop holds nothing.
    """
    crops = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        wide, high = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), range(count)):
            x0, y0 = (wide - overlap) * column, (high - overlap) * row
            box = x0, y0, min(x0 + wide, width), min(y0 + high, height)
            if box[2] <= x0 or box[3] <= y0:
                raise UserError(
                    f"a photo of {width} x {height} pixels has nothing left for crop layer "
                    f"{layer}. Choose a smaller `crop_n_layers={layers}`"
                )
            crops.append((layer, box))
    return crops


def cut_by_crop(boxes: np.ndarray, crop: Crop, height: int, width: int) -> np.ndarray:
    """Tell which boxes [N, 4] of the photo end at the crop's edge, and not at the photo's."""
    near_crop = np.abs(boxes - np.array(crop)) <= _NEAR_EDGE
    near_photo = np.abs(boxes - np.array([0, 0, width, height])) <= _NEAR_EDGE
    return np.asarray((near_crop & ~near_photo).any(axis=1))
