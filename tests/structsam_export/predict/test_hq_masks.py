"""Which of a decoder's masks and scores are taken, with and without SAM-HQ's."""

from __future__ import annotations

import numpy as np
import pytest

from structsam_export.predict.hq_masks import choose_masks, every_mask

SCORES = np.array([[0.9, 0.1, 0.2, 0.7], [0.3, 0.6, 0.5, 0.4]], np.float32)
#: Of mask `output` of prompt `p` every logit is 10 p + output; of the HQ token's 100 (p + 1).
MASKS = np.array([[0, 1, 2, 3], [10, 11, 12, 13]], np.float32)[..., None, None]
HQ = np.array([[100], [200]], np.float32)[..., None, None]
PLAIN = {"low_res_masks": MASKS, "iou_predictions": SCORES}


@pytest.mark.parametrize(
    ("multimask", "only", "scores", "logits"),
    [
        (True, False, [0.7, 0.6], [103, 211]),  # on the best of three, which differ by prompt
        (False, False, [0.9, 0.3], [100, 210]),
        (True, True, [0.7, 0.6], [100, 200]),
        (False, True, [0.9, 0.3], [100, 200]),
    ],
)
def test_sam_hq_gives_one_mask_and_the_score_of_sams(
    multimask: bool, only: bool, scores: list[float], logits: list[float]
) -> None:
    found_scores, found = choose_masks({**PLAIN, "hq_masks": HQ}, multimask, only)
    assert np.array_equal(found_scores, np.array(scores, np.float32)[:, None])
    assert np.array_equal(found, np.array(logits, np.float32)[:, None, None, None])


def test_sam_gives_three_or_its_single_one() -> None:
    for multimask, places in ((True, slice(1, 4)), (False, slice(0, 1))):
        scores, masks = choose_masks(PLAIN, multimask)
        assert np.array_equal(scores, SCORES[:, places])
        assert np.array_equal(masks, MASKS[:, places])


def test_every_mask_ends_with_the_hq_tokens_alone() -> None:
    assert every_mask(PLAIN) is MASKS
    found = every_mask({**PLAIN, "hq_masks": HQ})[..., 0, 0]
    assert found.tolist() == [[100, 101, 102, 103, 100], [210, 211, 212, 213, 200]]
