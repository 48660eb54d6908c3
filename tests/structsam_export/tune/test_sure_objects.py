"""Objects that a model is surest of, against every mask compared with all that were kept."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from structsam_export.tune.sure_objects import (
    LARGEST,
    OVERLAP,
    SMALLEST,
    box_of,
    grid_points,
    sure_objects,
)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([(12, 12), (12, 8), (5, 12)]))
def test_as_written_out(seed: int, prompts: int, inside: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(prompts * 3).reshape(prompts, 3) / 100
    low_res = rng.normal(size=(prompts, 3, 12, 12)) + rng.choice([-3, -1, 0, 1], (prompts, 1, 1, 1))
    kept: list[tuple[int, int]] = []
    for prompt in sorted(range(prompts), key=lambda p: -max(scores[p])):
        output = int(np.argmax(scores[prompt]))
        mask = {(y, x) for y in range(inside[0]) for x in range(inside[1])
                if low_res[prompt, output, y, x] > 0}  # fmt: skip
        before = {(y, x) for p, o in kept for y in range(inside[0]) for x in range(inside[1])
                  if low_res[p, o, y, x] > 0}  # fmt: skip
        share = len(mask) / (inside[0] * inside[1])
        if SMALLEST <= share <= LARGEST and len(mask & before) <= OVERLAP * len(mask):
            kept.append((prompt, output))
    assert list(sure_objects(scores, low_res, inside)) == kept


def test_boxes_hold_their_pixels_and_no_more() -> None:
    mask = np.zeros((4, 8), bool)
    mask[1, 2] = mask[2, 5] = True
    assert box_of(mask) == (2 / 8, 1 / 4, 6 / 8, 3 / 4)
    assert box_of(np.ones((4, 8), bool)) == (0, 0, 1, 1)


def test_points_lie_in_the_middle_of_their_squares_row_by_row() -> None:
    assert grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
