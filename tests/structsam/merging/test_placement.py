"""Where merging is applied: around attention, also around the MLP, or once for a run of blocks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from structsam.apply import apply_merging, merged_blocks, remove_merging, set_prompt_box
from structsam.config import PLACEMENTS
from structsam.errors import UserError
from structsam.recording import record_plans
from tests.structsam import naive_structsam as naive
from tests.structsam.naive_attention import (
    head_mean,
    layer_norm,
    linear,
    naive_attention,
    random_map,
    relative_error,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
#: Blocks 0 and 1 attend within windows, 2 and 3 over the whole grid, 4 within windows.
LAYOUT = {"depth": 5, "global_blocks": (2, 3)}


def naive_mlp(block, rows):
    hidden = linear(block.mlp.lin1, rows)
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return linear(block.mlp.lin2, hidden)


def windows_of(block, x):
    side = block.window_size or x.shape[0]
    return side, [window.reshape(-1, x.shape[-1]) for window in naive.partition(x, side)]


def plans_of(block, x, rate):
    side = block.window_size or x.shape[0]
    energy = naive.sobel_energy(
        head_mean(layer_norm(block.norm1, x), block.attn.num_heads)
    )  # on the whole map
    return [naive.plan(scores, rate) for scores in naive.partition(energy, side)]


def around(block, x, plans, run):
    """Merge every window of [H, W, C], run on its slots, unmerge, and put the map together."""
    side, windows = windows_of(block, x)
    pieces = []
    for index, (tokens, plan) in enumerate(zip(windows, plans, strict=True)):
        slots = run(index, naive.merge(tokens, plan.slot_of_token, plan.num_slots), plan)
        pieces.append(naive.unmerge(slots, plan.slot_of_token).reshape(side, side, -1))
    return naive.unpartition(pieces, side, x.shape[:2])


def attention_of(block):
    side = block.window_size or 16
    return lambda index, slots, plan: naive_attention(
        block.attn, slots, plan.anchor_of_slot, (side, side)
    )


def naive_block_placement(block, x, rate):
    plans = plans_of(block, x, rate)
    x = x + around(block, layer_norm(block.norm1, x), plans, attention_of(block))
    normed = layer_norm(block.norm2, x)
    return x + around(block, normed, plans, lambda index, slots, plan: naive_mlp(block, slots))


def naive_stage(blocks, x, rate):
    """One plan from the first block's input; the difference of the slots goes to all tokens."""
    plans = plans_of(blocks[0], x, rate)
    side = blocks[0].window_size or 16
    real = [window.reshape(-1) for window in naive.partition(np.ones(x.shape[:2]), side)]

    def run(index, slots, plan):
        y = slots
        is_real = real[index][np.asarray(plan.anchor_of_slot)][:, None]
        for block in blocks:
            normed = layer_norm(block.norm1, y) * is_real  # SAM pads with zeros after the norm
            y = y + naive_attention(block.attn, normed, plan.anchor_of_slot, (side, side))
            y = y + naive_mlp(block, layer_norm(block.norm2, y))
        return y - slots

    return x + around(blocks[0], x, plans, run)


@pytest.mark.parametrize("index", [0, 2], ids=["padded-window", "global"])
@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_the_mlp_runs_on_slots_of_the_same_plan(index, rate, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(1, **LAYOUT).double()
    apply_merging(sam, rate=rate, placement="block")
    block = sam.image_encoder.blocks[index]
    x = random_map(1, 16, 16, 32, seed=index)
    expected = naive_block_placement(block, x[0].numpy(), rate)
    assert relative_error(block(x)[0].numpy(), expected) < 1e-9


@pytest.mark.parametrize("run", [(0, 1), (2, 3), (4,)], ids=["windows", "global", "single"])
@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_a_stage_merges_once_and_adds_the_difference(run, rate, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(2, **LAYOUT).double()
    apply_merging(sam, rate=rate, placement="stage")
    blocks = [sam.image_encoder.blocks[index] for index in run]
    x = random_map(1, 16, 16, 32, seed=run[0])
    expected = naive_stage(blocks, x[0].numpy(), rate)
    y = x
    for block in blocks:
        y = block(y)
    assert relative_error(y[0].numpy(), expected) < 1e-9


def test_only_the_first_block_of_a_stage_plans(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(**LAYOUT), rate=0.5, placement="stage")
    assert [block.plans for block in merged_blocks(sam)] == [True, False, True, False, True]
    with record_plans(sam) as planned:
        sam.image_encoder(random_map(1, 3, 256, 256, dtype=torch.float32))
    grids = {index: merging.plan.grid for index, merging in planned.items()}
    assert grids == {0: (14, 14), 2: (16, 16), 4: (14, 14)}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rate_zero_is_stock_sam_in_every_placement(placement, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(**LAYOUT)
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image)
    apply_merging(sam, rate=0, placement=placement)
    assert relative_error(sam.image_encoder(image), expected.numpy()) < 1e-5


@pytest.mark.parametrize("placement", ["block", "stage"])
@pytest.mark.parametrize("method", ["tome", "cubistmerge", "algm"])
def test_other_methods_and_options_go_with_every_placement(
    method, placement, tiny_sam_factory
) -> None:
    sam = tiny_sam_factory(**LAYOUT)
    image = random_map(2, 3, 256, 256, dtype=torch.float32)
    stock = sam.image_encoder(image)
    apply_merging(sam, method=method, rate=0.4, placement=placement, proportional=True, align=8)
    together = sam.image_encoder(image)
    assert torch.isfinite(together).all()
    assert relative_error(together, stock.numpy()) > 1e-3
    alone = sam.image_encoder(image[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("placement", ["block", "stage"])
def test_prompt_windows_go_with_every_placement(placement, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(**LAYOUT)
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    apply_merging(sam, rate=0.5, placement=placement, prompt_aware="windows")
    set_prompt_box(sam, (30, 20, 110, 90))
    one = sam.image_encoder(image)
    set_prompt_box(sam, (230, 230, 256, 256))
    assert not torch.equal(sam.image_encoder(image), one)


def test_a_copy_of_a_staged_model_runs_its_own_blocks(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(**LAYOUT), rate=0.5, placement="stage")
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image)
    twin = copy.deepcopy(sam)
    for parameter in sam.parameters():
        parameter.data.zero_()
    assert torch.equal(twin.image_encoder(image), expected)
    keys = list(twin.state_dict())
    assert keys == list(remove_merging(twin).state_dict())


def test_an_unknown_placement_is_refused(tiny_sam_factory) -> None:
    with pytest.raises(UserError, match="unknown placement 'mlp'. Use one of: attention, block"):
        apply_merging(tiny_sam_factory(), rate=0.5, placement="mlp")
