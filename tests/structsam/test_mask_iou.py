"""One function for all: by hand, and against sets of pixels."""

from __future__ import annotations

import numpy as np

from structsam.mask_iou import mask_area, mask_iou


def test_mask_iou_by_hand() -> None:
    a = np.zeros((4, 3, 3), bool)
    b = np.zeros((4, 3, 3), bool)
    a[0, 0], b[0, 0, :2] = True, True  # 3 and 2 pixels, 2 shared
    a[1, 0], b[1, 2] = True, True  # apart
    a[2] = True  # against an empty one
    # 3: both empty
    assert mask_iou(a, b).tolist() == [2 / 3, 0, 0, 1]
    assert mask_iou(b, a).tolist() == [2 / 3, 0, 0, 1]
    assert mask_iou(a.reshape(2, 2, 3, 3), b.reshape(2, 2, 3, 3)).shape == (2, 2)


def test_mask_iou_is_that_of_sets(rng: np.random.Generator) -> None:
    masks = rng.random((2, 3, 5, 7)) > 0.6
    first, second = masks.transpose(0, 1, 3, 2)  # a view that is not contiguous
    sets = [[set(map(tuple, np.argwhere(mask))) for mask in side] for side in (first, second)]
    expected = [len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)]
    np.testing.assert_allclose(mask_iou(first, second), expected)
    assert mask_area(first).tolist() == [len(pixels) for pixels in sets[0]]


def test_masks_without_a_pixel_are_empty() -> None:
    nothing = np.zeros((2, 0, 3), bool)
    assert mask_iou(nothing, nothing).tolist() == [1, 1]
