"""Protocols and prompts against naive references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.evaluation.prompts import Prompting, correction, innermost, segment
from structsam.evaluation.protocols import PROTOCOLS, bilinear, find_protocol, tight_box
from tests.structsam.evaluation.toy import BoxFiller

pytest.importorskip("scipy")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [(37, 64), (100, 81), (256, 300), (20, 20)])
def test_bilinear_equals_torch(rng, size):
    logits = rng.normal(size=(64, 48)).astype(np.float32)
    photo = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)

    def interpolated(array):
        return torch.nn.functional.interpolate(
            torch.from_numpy(array)[None, None].float(), size, mode="bilinear"
        )[0, 0].numpy()

    np.testing.assert_allclose(bilinear(logits, size), interpolated(logits), atol=2e-4)
    for channel in range(3):
        error = bilinear(photo, size)[..., channel] - interpolated(photo[..., channel])
        assert error.min() > -1.001 and error.max() < 0.001  # cut, as HQ-SAM's cast does


def test_boxes_follow_their_protocol():
    mask = np.zeros((100, 200), bool)
    mask[10:20, 50:80] = True
    assert PROTOCOLS["sam"].box(mask) == (50, 10, 80, 20)
    resized = PROTOCOLS["hqsam"].prompt_mask(mask)
    assert resized.shape == (1024, 1024)
    x0, y0, x1, y1 = PROTOCOLS["hqsam"].box(resized)
    # both corners inclusive: one pixel short of the exclusive ones
    assert (x1, y1) == tuple(np.array(tight_box(resized))[2:] - 1)
    np.testing.assert_allclose([x0, x1], [50 * 5.12, 80 * 5.12], atol=3)
    np.testing.assert_allclose([y0, y1], [10 * 10.24, 20 * 10.24], atol=6)


def test_medsam_takes_the_sigmoid_first():
    low_res = np.full((1, 256, 256), -1.0, np.float32)
    low_res[:, :, 128:] = 9.0
    logits = PROTOCOLS["hqsam"].finish(BoxFiller(), low_res, (256, 2560))[0]
    probabilities = PROTOCOLS["medsam"].finish(BoxFiller(), low_res, (256, 2560))[0]
    # the crossing of a step from -1 to 9 lies nearer to the low side in logits
    assert logits.sum() > probabilities.sum()
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(low_res)[None].sigmoid(), (256, 2560), mode="bilinear"
    )
    np.testing.assert_array_equal(probabilities, by_torch[0, 0].numpy() > 0.5)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match="sam, hqsam, medsam"):
        find_protocol("coco")
    with pytest.raises(UserError, match="box, click, three-click"):
        Prompting("dots")
    with pytest.raises(UserError, match="0 to 1"):
        Prompting(box_noise=2)
    with pytest.raises(UserError, match="belong to box"):
        Prompting("click", box_noise=0.1)


def naive_innermost(region):
    best, where = -1.0, None
    height, width = region.shape
    outside = [
        (y, x)
        for y in range(-1, height + 1)
        for x in range(-1, width + 1)
        if not (0 <= y < height and 0 <= x < width and region[y, x])
    ]
    for y, x in zip(*np.nonzero(region), strict=True):
        distance = min((y - v) ** 2 + (x - u) ** 2 for v, u in outside)
        if distance > best:
            best, where = distance, (x, y)
    return where


@given(st.integers(0, 2**32 - 1))
def test_innermost_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    region = rng.random(rng.integers(2, 12, 2)) < rng.uniform(0.3, 0.95)
    region[0, 0] = True
    assert innermost(region) == naive_innermost(region)


def test_a_correction_goes_to_the_largest_wrong_region():
    truth = np.zeros((40, 40), bool)
    truth[5:35, 5:35] = True
    predicted = truth.copy()
    predicted[5:12, 5:12] = False  # 49 pixels missing
    predicted[36:39, 0:20] = True  # 60 pixels too many
    (x, y), label = correction(predicted, truth)
    assert label == 0 and 36 <= y < 39 and x < 20
    predicted[36:39, 0:20] = False
    assert correction(predicted, truth) == ((8, 8), 1)
    assert correction(truth, truth)[1] == 1


def boxes_of(prompting, names, masks):
    filler = BoxFiller()
    filler.set_image(np.zeros((*masks[0].shape, 3), np.uint8))
    none = [None] * len(masks)
    segment(filler, PROTOCOLS["sam"], prompting, "photo", masks, none, names)
    return filler.calls[0]["box"]


def test_noise_belongs_to_the_object_and_is_bounded():
    masks = []
    for x in (10, 300):
        mask = np.zeros((600, 1024), bool)
        mask[100:400, x : x + 200] = True
        masks.append(mask)
    noisy = Prompting(box_noise=0.5)
    both = boxes_of(noisy, ["a", "b"], masks)
    alone = boxes_of(noisy, ["b"], masks[1:])
    np.testing.assert_array_equal(both[1], alone[0])
    exact = boxes_of(Prompting(), ["a", "b"], masks)
    moved = np.abs(both - exact)
    assert 0 < moved.max() <= 20 + 1e-9
    assert (boxes_of(Prompting(box_noise=0.5, seed=1), ["a", "b"], masks) != both).any()


def test_noise_is_a_share_of_each_side_and_stays_inside():
    """A long thin box on a photo of half the input's size."""
    mask = np.zeros((200, 512), bool)
    mask[90:96, 10:500] = True
    noisy = [boxes_of(Prompting(box_noise=0.1, seed=seed), ["a"], [mask])[0] for seed in range(60)]
    moved = np.abs(np.array(noisy) - [10, 90, 500, 96])
    assert moved[:, [0, 2]].max() == pytest.approx(10)  # 20 pixels of 1024, on half the side
    assert moved[:, [1, 3]].max() < 3  # a tenth of six pixels, a few deviations
    assert (np.array(noisy)[:, 2] <= 512).all()


class Three(BoxFiller):
    """Three masks of a box: none of it, all of it, and everything, with known scores."""

    def predict_low_res(
        self,
        point_coords=None,
        point_labels=None,
        box=None,
        mask_input=None,
        multimask_output=True,
    ):
        scores, low_res = super().predict_low_res(
            point_coords, point_labels, box, mask_input, multimask_output
        )
        self.calls[-1]["multimask"] = multimask_output
        if multimask_output:
            low_res[:, 0] = -4.0
            low_res[:, 2] = 4.0
        return scores, low_res


def test_the_best_of_three_is_the_one_of_highest_predicted_iou():
    mask = np.zeros((96, 128), bool)
    mask[20:80, 20:80] = True
    for multimask in (True, False):
        three = Three()
        three.set_image(np.zeros((96, 128, 3), np.uint8))
        low_res, scores, _ = segment(
            three, PROTOCOLS["sam"], Prompting(multimask=multimask), "p", [mask], [None], ["a"]
        )
        assert three.calls[0]["multimask"] is multimask
        assert scores.tolist() == [0.9 if multimask else 0.5]
        assert (low_res > 0).mean() == pytest.approx(120 * 120 / 256**2)


def test_boxes_of_a_detector_are_no_clicks():
    mask = np.zeros((96, 128), bool)  # of a detection that found nothing
    with pytest.raises(UserError, match="click asks by points. Use `box`"):
        segment(
            BoxFiller(), PROTOCOLS["sam"], Prompting("click"), "p", [mask], [(1, 2, 9, 9)], ["a"]
        )
    with pytest.raises(UserError, match="seed -1 is out of range"):
        Prompting(seed=-1)


def test_corrections_carry_their_label_and_ask_for_one_mask():
    mask = np.zeros((96, 128), bool)
    mask[48, 64] = True  # the filler's 20 pixels around the click are too many
    three = Three()
    three.set_image(np.zeros((96, 128, 3), np.uint8))
    segment(three, PROTOCOLS["sam"], Prompting("three-click"), "p", [mask], [None], ["a"])
    assert [call["multimask"] for call in three.calls] == [True, False, False]
    assert three.calls[2]["labels"][0, 1:].tolist() == [0, 0]


def test_hqsam_keeps_what_exceeds_half():
    mask = np.zeros((512, 512), bool)
    mask[100:200, 100:200] = True
    resized = PROTOCOLS["hqsam"].prompt_mask(mask)
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(mask)[None, None].float() * 255, (1024, 1024), mode="bilinear"
    )
    np.testing.assert_array_equal(resized, by_torch[0, 0].numpy() > 128)


def test_three_clicks_pass_the_mask_on():
    mask = np.zeros((96, 128), bool)
    mask[20:80, 20:80] = True
    filler = BoxFiller()
    filler.set_image(np.zeros((96, 128, 3), np.uint8))
    segment(filler, PROTOCOLS["sam"], Prompting("three-click"), "photo", [mask], [None], ["a"])
    assert [np.shape(call["points"]) for call in filler.calls] == [(1, 1, 2), (1, 2, 2), (1, 3, 2)]
    assert filler.calls[0]["mask"] is None
    assert np.shape(filler.calls[1]["mask"]) == (1, 1, 256, 256)
    assert filler.calls[0]["points"][0, 0].tolist() == [49, 49]
