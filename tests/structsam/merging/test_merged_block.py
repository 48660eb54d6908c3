"""The merged block against a plain computation in float64, for every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from structsam.apply import apply_merging, merged_blocks, remove_merging, set_prompt_box
from structsam.errors import UserError
from structsam.merging.attention_forms import FORMS
from structsam.methods import METHODS
from structsam.recording import record_plans
from tests.structsam import naive_structsam as naive
from tests.structsam.naive_attention import (
    block_with_plans,
    head_mean,
    layer_norm,
    naive_structsam_block,
    numpy_of,
    random_map,
    relative_error,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
every_form = pytest.mark.parametrize("form", FORMS)
every_kind = pytest.mark.parametrize("index", [0, 1], ids=["padded-window", "global"])


@every_form
@pytest.mark.parametrize("seed", [0, 1])
def test_rate_zero_is_stock_sam(form, seed, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(seed)
    image = random_map(2, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image).double().numpy()
    apply_merging(sam, rate=0, attention=form)
    assert len(merged_blocks(sam)) == 3
    assert relative_error(sam.image_encoder(image), expected) < 1e-5


@every_form
@pytest.mark.parametrize("index", [0, 1], ids=["padded-window", "global"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_a_merged_block_is_the_naive_one(form, index, rate, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(3).double()
    apply_merging(sam, rate=rate, attention=form)
    block = sam.image_encoder.blocks[index]
    feature_map = random_map(1, 16, 16, 32, seed=index)
    actual = block(feature_map)[0].numpy()
    expected = naive_structsam_block(block, feature_map[0].numpy(), rate)
    # energies are float32 in both precisions, hence equal plans; the rest is float64
    assert relative_error(actual, expected) < 1e-9


def test_a_merged_block_in_single_precision_is_close_to_the_naive_one(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(3), rate=0.5)
    block = sam.image_encoder.blocks[0]
    feature_map = random_map(1, 16, 16, 32, dtype=torch.float32)
    expected = naive_structsam_block(block, feature_map[0].double().numpy(), 0.5)
    assert relative_error(block(feature_map)[0], expected) < 1e-5


def test_padded_windows_merge_by_the_energy_of_the_unpadded_map(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    block = sam.image_encoder.blocks[0]
    feature_map = random_map(2, 16, 16, 32, dtype=torch.float32)
    with record_plans(sam) as planned:
        block(feature_map)
    plan = planned[0].plan
    assert plan.slot_of_token.shape == (2 * 4, 196)
    for image in range(2):
        normed = layer_norm(block.norm1, feature_map[image].double().numpy())
        for window, energy in enumerate(
            naive.partition(naive.sobel_energy(head_mean(normed, 2)), 14)
        ):
            expected = naive.plan(energy, 0.5)
            row = image * 4 + window
            assert plan.slot_of_token[row].tolist() == expected.slot_of_token
            assert plan.anchor_of_slot[row].tolist() == expected.anchor_of_slot


def test_only_merging_blocks_report_a_plan(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5, layers="global")
    with record_plans(sam) as planned:
        sam.image_encoder(random_map(1, 3, 256, 256, dtype=torch.float32))
    assert {index: merging.plan.grid for index, merging in planned.items()} == {1: (16, 16)}


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_merging_changes_the_result(rate, tiny_sam_factory) -> None:
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    sam = tiny_sam_factory()
    stock = sam.image_encoder(image).double().numpy()
    apply_merging(sam, rate=rate)
    assert relative_error(sam.image_encoder(image), stock) > 1e-3


def run_and_watch(block, feature_map):
    """The block's output [H, W, C] as numpy, and the plan that it reports."""
    planned = []
    block.on_plan = planned.append
    out = block(feature_map)[0].double().numpy()
    (merging,) = planned
    return out, merging.plan


@every_form
@every_kind
@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_attends_as_its_plan_says(
    name, proportional, index, form, tiny_sam_factory
) -> None:
    """Given the plan, everything after it is computed again: attention, unmerging, residual."""
    options = {"positions": "original"} if name == "cubistmerge" else {}
    sam = apply_merging(
        tiny_sam_factory(4).double(),
        method=name,
        rate=0.5,
        attention=form,
        options=options,
        proportional=proportional,
    )
    feature_map = random_map(1, 16, 16, 32, seed=index)
    out, plan = run_and_watch(sam.image_encoder.blocks[index], feature_map)
    block = sam.image_encoder.blocks[index]
    normed = layer_norm(block.norm1, feature_map[0].numpy())
    windows = naive.partition(normed, block.window_size or 16)
    tokens = torch.from_numpy(np.stack([w.reshape(-1, 32) for w in windows]))
    merged = plan.merge(tokens).numpy()
    expected = block_with_plans(
        block,
        feature_map[0].numpy(),
        list(zip(plan.slot_of_token.tolist(), plan.anchor_of_slot.tolist(), strict=True)),
        lambda window, _: merged[window],
        **({"sizes": plan.size_of_slot.double().numpy()} if proportional else {}),
    )
    # the logs of the sizes are float32
    assert relative_error(out, expected) < (1e-7 if proportional else 1e-9)


@every_form
@every_kind
def test_structured_positions_are_those_of_a_smaller_grid(index, form, tiny_sam_factory) -> None:
    """The tables are resampled as stock SAM does for another size (linear interpolation)."""
    sam = apply_merging(
        tiny_sam_factory(5).double(), method="cubistmerge", rate=0.5, attention=form
    )
    block = sam.image_encoder.blocks[index]
    feature_map = random_map(1, 16, 16, 32, seed=index)
    out, plan = run_and_watch(block, feature_map)
    height, width = plan.slot_grid
    side = block.window_size or 16
    assert height * width == plan.num_slots < side * side

    def table(rel_pos, size):
        stretched = F.interpolate(rel_pos.T[None], size=2 * size - 1, mode="linear")[0].T
        middle = side - 1 - (size - 1)  # where offset 0 of the small table comes to lie
        full = np.zeros((2 * side - 1, rel_pos.shape[1]))
        full[middle : middle + 2 * size - 1] = numpy_of(stretched)
        return full

    tables = table(block.attn.rel_pos_h, height), table(block.attn.rel_pos_w, width)
    places = [y * side + x for y in range(height) for x in range(width)]
    normed = layer_norm(block.norm1, feature_map[0].numpy())
    windows = naive.partition(normed, side)
    tokens = torch.from_numpy(np.stack([w.reshape(-1, 32) for w in windows]))
    merged = plan.merge(tokens).numpy()
    expected = block_with_plans(
        block,
        feature_map[0].numpy(),
        [(slots, places) for slots in plan.slot_of_token.tolist()],
        lambda window, _: merged[window],
        tables=[tables] * len(windows),
    )
    assert relative_error(out, expected) < 1e-9


BOX = (30.0, 20.0, 110.0, 90.0)  # pixels; tokens 1.9..6.9 x 1.25..5.6 of a 16x16 grid


def test_without_a_box_a_prompt_aware_model_merges_as_any_other(tiny_sam_factory) -> None:
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    plain = apply_merging(tiny_sam_factory(), rate=0.5).image_encoder(image)
    aware = apply_merging(tiny_sam_factory(), rate=0.5, prompt_aware="rank").image_encoder(image)
    assert torch.equal(plain, aware)


@pytest.mark.parametrize("prompt_aware", ["rank", "windows"])
@every_kind
def test_what_lies_outside_the_box_merges_first(prompt_aware, index, tiny_sam_factory) -> None:
    """In every window: no cell inside merges while one outside stays."""
    sam = apply_merging(tiny_sam_factory(), rate=0.5, prompt_aware=prompt_aware)
    set_prompt_box(sam, BOX)
    block = sam.image_encoder.blocks[index]
    _, plan = run_and_watch(block, random_map(1, 16, 16, 32, dtype=torch.float32))
    side = block.window_size or 16
    x0, y0, x1, y1 = (value / 16 for value in BOX)
    seen_inside = 0
    for window, slots in enumerate(plan.slot_of_token):
        shared = (torch.bincount(slots)[slots] > 1).reshape(side, side)
        top, left = (side * place for place in divmod(window, 2 if block.window_size else 1))
        cells = [(y, x) for y in range(0, side, 2) for x in range(0, side, 2)]
        inside = [y0 <= top + y + 1 <= y1 and x0 <= left + x + 1 <= x1 for y, x in cells]
        merged = [bool(shared[y, x]) for y, x in cells]
        kept_outside = any(not m and not i for m, i in zip(merged, inside, strict=True))
        merged_inside = any(m and i for m, i in zip(merged, inside, strict=True))
        assert not (kept_outside and merged_inside)
        seen_inside += sum(inside)
    assert seen_inside == 4  # cell centres (3, 3), (3, 5), (5, 3), (5, 5)


def test_windows_that_the_box_covers_merge_less_and_the_others_more(tiny_sam_factory) -> None:
    sam = tiny_sam_factory()
    apply_merging(sam, rate=0.5)
    plain = sam.image_encoder.blocks[0].method.num_slots
    apply_merging(sam, rate=0.5, prompt_aware="windows")
    block = sam.image_encoder.blocks[0]
    assert [(tier.method.rate, tier.windows) for tier in block.tiers] == [
        (0.25, 1),
        (pytest.approx(1.75 / 3), 3),
    ]
    feature_map = random_map(2, 16, 16, 32, dtype=torch.float32)
    counts = []
    # the second box lies in the window at the bottom right
    for boxes in ((BOX, BOX), (BOX, (230, 230, 256, 256))):
        set_prompt_box(sam, torch.tensor(boxes, dtype=torch.float32))
        with record_plans(sam) as planned:
            block(feature_map)
        (merging,) = planned.values()
        plan = merging.plan
        counts.append([len(set(slots.tolist())) for slots in plan.slot_of_token])
    inside, outside = (tier.method.num_slots for tier in block.tiers)
    assert counts[0] == [inside, outside, outside, outside] * 2
    assert counts[1] == [inside, outside, outside, outside, outside, outside, outside, inside]
    assert inside > plain > outside
    # on average the rate is the one that was asked for, up to whole cells
    assert abs((inside + 3 * outside) / 4 - plain) < 3


def test_tiers_compute_what_their_windows_compute_alone(tiny_sam_factory) -> None:
    """Each window equals the same window of a block that merges all windows like its tier."""
    sam = tiny_sam_factory().double()
    feature_map = random_map(2, 14 * 2, 14 * 2, 32)  # four whole windows
    boxes = torch.tensor([[0, 0, 28, 14], [14, 14, 28, 28]]) * 16.0
    apply_merging(sam, rate=0.5, prompt_aware="windows")
    set_prompt_box(sam, boxes)
    block = sam.image_encoder.blocks[0]
    rates = [tier.method.rate for tier in block.tiers]
    together = block(feature_map)
    alone = []
    for rate in rates:
        apply_merging(sam, rate=(rate, 0.5, 0.5), prompt_aware="rank")
        set_prompt_box(sam, boxes)
        alone.append(sam.image_encoder.blocks[0](feature_map))
    # first image: the two upper windows are covered alike, so the first of them wins
    for image, first in ((0, (0, 0)), (1, (1, 1))):
        for window in ((0, 0), (0, 1), (1, 0), (1, 1)):
            y, x = (14 * place for place in window)
            part = (image, slice(y, y + 14), slice(x, x + 14))
            torch.testing.assert_close(together[part], alone[window != first][part])


@pytest.mark.parametrize(("box", "words"), [((1, 2, 3), "4 numbers"), ([[[1.0] * 4]], "4 numbers")])
def test_a_malformed_box_is_refused(box, words, tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5, prompt_aware="rank")
    with pytest.raises(UserError, match=words):
        set_prompt_box(sam, box)


def test_only_a_prompt_aware_model_takes_a_box(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    with pytest.raises(UserError, match="takes no prompt box"):
        set_prompt_box(sam, BOX)
    with pytest.raises(UserError, match="method 'tome' takes no prompt box. Use one"):
        apply_merging(sam, method="tome", rate=0.5, prompt_aware="rank")
    assert remove_merging(sam) is sam
