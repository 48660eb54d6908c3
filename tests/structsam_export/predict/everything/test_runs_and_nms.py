"""Run lengths and suppression against segment_anything and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from structsam.mask_runs import mask_of, runs_of
from structsam_export.predict.everything.nms import box_nms
from structsam_export.predict.everything.regions import without_small_regions

MASKS = arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6)))


@settings(max_examples=60)
@given(MASKS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
def test_runs_of_a_window(part: np.ndarray, top: int, left: int, below: int, right: int) -> None:
    torch = pytest.importorskip("torch")
    amg = pytest.importorskip("segment_anything.utils.amg")
    whole = np.pad(part, ((top, below), (left, right)))
    found = runs_of(part, top, left, whole.shape)
    (expected,) = amg.mask_to_rle_pytorch(torch.as_tensor(whole)[None])
    assert found.tolist() == expected["counts"]
    np.testing.assert_array_equal(mask_of(found, whole.shape), whole)


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_is_torchvisions(count: int, threshold: float) -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 30, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 25, (count, 2))], 1)
    scores = rng.integers(0, 20, count) / 20  # many are equal, and some boxes have no area
    expected = torchvision.ops.nms(
        torch.as_tensor(boxes).float(), torch.as_tensor(scores).float(), threshold
    )
    assert box_nms(boxes, scores, threshold).tolist() == expected.tolist()


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("mask", "mended"),
    [
        (drawn("###..", "#.#.#", "###.."), drawn("###..", "###..", "###..")),  # hole and island
        (drawn("#....", "...##"), drawn(".....", "...##")),  # all are small: the largest stays
        (drawn("##...", "..##.", "....."), None),  # across a corner it is one region
    ],
)
def test_small_regions(mask: np.ndarray, mended: np.ndarray | None) -> None:
    pytest.importorskip("scipy")
    found = without_small_regions(mask, 4)
    assert (found is None) == (mended is None)
    if mended is not None:
        np.testing.assert_array_equal(found, mended)
