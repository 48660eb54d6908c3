"""`reuse`: several blocks of one kind merge by the plan of the first of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from structsam.apply import apply_config, apply_merging, merged_blocks, set_prompt_box
from structsam.config import PLACEMENTS, MergeConfig
from structsam.errors import UserError
from structsam.flops import encoder_flops
from structsam.merging.block import MergedBlock
from structsam.models import MODELS
from tests.structsam.merging.test_placement import LAYOUT, around, attention_of, naive_mlp, plans_of
from tests.structsam.naive_attention import layer_norm, random_map, relative_error

pytestmark = pytest.mark.usefixtures("one_torch_thread")
RATE = 0.5


@pytest.mark.parametrize("run", [(0, 1), (2, 3)], ids=["padded-windows", "global"])
@pytest.mark.parametrize("placement", ["attention", "block"])
def test_a_follower_merges_its_own_tokens_by_the_first_block_s_plan(
    run, placement, tiny_sam_factory
) -> None:
    sam = tiny_sam_factory(2, **LAYOUT).double()
    apply_merging(sam, rate=RATE, placement=placement, reuse=2)
    first, second = (sam.image_encoder.blocks[index] for index in run)
    start = random_map(1, 16, 16, 32, seed=run[0])
    found = second(first(start))[0].numpy()

    plans = plans_of(first, start[0].numpy(), RATE)
    x = start[0].numpy()
    for block in (first, second):
        x = x + around(block, layer_norm(block.norm1, x), plans, attention_of(block))
        normed = layer_norm(block.norm2, x)
        if placement == "block":
            x = x + around(
                block, normed, plans, lambda i, slots, _, own=block: naive_mlp(own, slots)
            )
        else:
            x = x + naive_mlp(block, normed.reshape(-1, 32)).reshape(x.shape)
    assert relative_error(found, x) < 1e-9

    own = apply_merging(tiny_sam_factory(2, **LAYOUT).double(), rate=RATE, placement=placement)
    first, second = (own.image_encoder.blocks[index] for index in run)
    assert relative_error(second(first(start))[0].numpy(), x) > 1e-4, "its own plan would differ"


def test_who_plans_for_whom() -> None:
    kinds = [False, False, True, False, False, True, False, False]

    def planners(**config):
        return MergeConfig(**config).planners(kinds)

    assert planners() == list(range(8))
    assert planners(reuse=2) == [0, 0, 2, 3, 3, 2, 6, 6]
    assert planners(reuse=3) == [0, 0, 2, 0, 4, 2, 4, 4]
    assert planners(reuse=99) == [0, 0, 2, 0, 0, 2, 0, 0]
    assert planners(placement="stage") == [0, 0, 2, 3, 3, 5, 6, 6]
    assert planners(placement="stage", reuse=2) == [0, 0, 2, 0, 0, 2, 6, 6]
    rates = (0.5, 0.25, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5)
    assert planners(rate=rates, reuse=2) == [0, 1, 2, 0, 1, 2, 6, 6]
    assert MODELS["vit_b"].global_blocks == (2, 5, 8, 11)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_planners_plan_and_nothing_is_kept_after_a_call(placement, tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(**LAYOUT), rate=RATE, placement=placement, reuse=99)
    blocks = merged_blocks(sam)
    assert [block.plans for block in blocks] == [True, False, True, False, False]
    plans = []
    for block in blocks:
        block.on_plan = plans.append
    image = random_map(2, 3, 256, 256, dtype=torch.float32)
    together = sam.image_encoder(image)
    assert [each.plan.grid for each in plans] == [(14, 14), (16, 16)]
    assert all(block._shared._merging is None for block in blocks)
    alone = sam.image_encoder(image[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_copy_shares_plans_among_its_own_blocks(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(**LAYOUT), rate=RATE, reuse=2)
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image)
    twin = copy.deepcopy(sam)
    for parameter in sam.parameters():
        parameter.data.zero_()
    assert torch.equal(twin.image_encoder(image), expected)


def test_prompt_windows_share_plans_too(tiny_sam_factory) -> None:
    """The second block of a pair gathers as the first, whatever windows the box made large."""
    sam = tiny_sam_factory(**LAYOUT)
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    apply_merging(sam, rate=RATE, prompt_aware="windows", reuse=2)
    first, second = merged_blocks(sam)[:2]
    used = []
    for block in (first, second):
        block._attention_on_slots = partial(
            lambda own, slots, group: used.append(group) or MergedBlock._attention_on_slots(
                own, slots, group
            ), block,
        )  # fmt: skip
    set_prompt_box(sam, (30, 20, 110, 90))
    sam.image_encoder(image)
    assert len(used) == 4 and len({group.plan.num_slots for group in used}) == 2
    assert used[0] is used[2] and used[1] is used[3]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sharing_saves_what_planning_costs(placement, tiny_spec) -> None:
    spec = replace(tiny_spec, depth=5, global_blocks=(2, 3))
    config = MergeConfig("tome", 0.4, placement=placement)
    own, shared = (encoder_flops(spec, replace(config, reuse=k)) for k in (1, 99))
    assert [block.matching > 0 for block in shared.blocks] == [True, False, True, False, False]
    assert own.overhead > shared.overhead
    assert own.sum("pooling") == shared.sum("pooling")
    saved = own.sum("energy") + own.sum("matching") - shared.sum("energy") - shared.sum("matching")
    unread = 5 * 256 * 32 if placement == "stage" else 0  # the norm that block 4 planned from
    assert own.total - shared.total == saved + unread > 0


@pytest.mark.parametrize("reuse", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_is_refused(reuse, tiny_sam_factory) -> None:
    with pytest.raises(UserError, match="reuse must be a whole number of blocks from 1"):
        apply_merging(tiny_sam_factory(), rate=RATE, reuse=reuse)


def test_the_configuration_survives_json() -> None:
    config = MergeConfig(reuse=3)
    assert MergeConfig.from_dict(config.to_dict()) == config
    old = {name: value for name, value in config.to_dict().items() if name != "reuse"}
    assert MergeConfig.from_dict(old).reuse == 1


def test_rate_zero_has_nothing_to_share(tiny_sam_factory) -> None:
    sam = tiny_sam_factory(**LAYOUT)
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image)
    apply_config(sam, MergeConfig(rate=0.0, reuse=2))
    assert relative_error(sam.image_encoder(image), expected.numpy()) < 1e-5
