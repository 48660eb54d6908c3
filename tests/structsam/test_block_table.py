"""The table of blocks: what it says is what FLOPs, the merged model and the manifest say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from structsam.apply import apply_merging, merged_blocks
from structsam.block_table import block_table
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.flops import encoder_flops
from structsam.methods import METHODS
from structsam.models import MODELS

#: Windows of 14, and 0 for a block that attends over the whole grid.
SIZES = (14, 14, 0, 14, 14, 0, 0)


def rows(**choice):
    return block_table(MergeConfig.of(**choice), (64, 64), SIZES)


def configs():
    for name in METHODS:
        yield MergeConfig(name, 0.4)
        yield MergeConfig(name, 0.25, "global", align=8)
    for placement in ("attention", "block", "stage"):
        for layers in ("all", "window", (0, 1, 4)):
            yield MergeConfig("structsam", 0.5, layers, placement=placement)
        for form in ("rank", "windows"):
            for rate in (0.15, 0.5, 0.75, (0.1, 0.7, 0.0, 0.3, 0.3)):
                yield MergeConfig(rate=rate, placement=placement, prompt_aware=form)
    yield MergeConfig(rate=0.0)


@pytest.mark.parametrize("config", list(configs()))
def test_flops_the_model_and_the_manifest_say_the_same(config, tiny_spec, tiny_sam_factory) -> None:
    layout = {"depth": 5, "global_blocks": (2, 3)}
    spec = replace(tiny_spec, **layout)
    table = block_table(config, spec.grid, spec.window_sizes)
    blocks = merged_blocks(apply_merging(tiny_sam_factory(**layout), config))
    counted = encoder_flops(spec, config).blocks
    for row, block, flops in zip(table, blocks, counted, strict=True):
        entry, told = row.to_dict(), flops.to_dict()
        kept = [(tier.method.num_slots, tier.windows) for tier in block.tiers]
        assert kept == [(tier.method.num_slots, tier.windows) for tier in row.tiers]
        assert (kept or [(row.tokens, row.maps)]) == [(t.slots, t.maps) for t in flops.tiers]
        assert block.plans == row.plans == bool(flops.overhead)
        assert (entry["grid"], entry["kind"]) == (list(row.grid), flops.kind)
        assert {name: entry[name] for name in ("index", "tokens", "slots")} == {
            name: told[name] for name in ("index", "tokens", "slots")
        }
        assert entry["rate"] == pytest.approx(row.rate, abs=1e-6) and flops.rate == row.rate
        assert len(entry.get("tiers", [{}])) == max(len(row.tiers), 1)
    for row in table:
        ran = blocks[row.index]._stage
        assert ran == (tuple(blocks[i] for i in row.stage) if row.stage[0] == row.index else ())


def test_rates_follow_layers() -> None:
    def rates(**choice):
        return [row.rate for row in rows(**choice)]

    assert rates(rate=0.5) == [0.5] * 7
    assert rates(rate=0.5, layers="global") == [0, 0, 0.5, 0, 0, 0.5, 0.5]
    per_block = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert rates(rate=per_block, layers="window") == [0.1, 0.2, 0, 0.4, 0.5, 0, 0]
    assert rates(rate=per_block, layers=[2, 6]) == [0, 0, 0.3, 0, 0, 0, 0.7]


def test_which_blocks_form_a_stage() -> None:
    def stages(**choice):
        found = rows(**{"placement": "stage", **choice})
        assert [row.index for row in found] == list(range(7))
        return list(dict.fromkeys(row.stage for row in found))

    assert stages() == [(0, 1), (2,), (3, 4), (5, 6)]
    assert stages(layers="global") == [(0,), (1,), (2,), (3,), (4,), (5, 6)]
    assert stages(layers=(1, 3, 4)) == [(0,), (1,), (2,), (3, 4), (5,), (6,)]
    assert stages(rate=(0.5, 0.25, 0.5, 0.5, 0.5, 0.5, 0.25)) == [
        (0,), (1,), (2,), (3, 4), (5,), (6,),
    ]  # fmt: skip
    assert stages(placement="block") == [(i,) for i in range(7)]
    assert [row.plans for row in rows(placement="stage")] == [1, 0, 1, 1, 0, 1, 0]


def test_a_third_of_the_windows_merges_half_as_much_around_a_box() -> None:
    def tiers(rate):
        (row, *_) = rows(rate=rate, prompt_aware="windows")
        return [(pytest.approx(tier.method.rate), tier.windows) for tier in row.tiers]

    assert tiers(0.5) == [(0.25, 8), ((25 * 0.5 - 8 * 0.25) / 17, 17)]
    assert tiers(0.7) == [((25 * 0.7 - 17 * 0.75) / 8, 8), (0.75, 17)]  # 0.75 is the limit
    assert tiers(0.75) == [(0.75, 8), (0.75, 17)]
    assert [row.tiers for row in rows(rate=[0.5, 0, 0, 0, 0, 0, 0])][1:] == [()] * 6


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"rate": [0.5] * 3}, "3 rates were given for an encoder of 7 blocks"),
        ({"layers": [7]}, "layer 7 does not exist: the encoder has blocks 0 to 6"),
        ({"layers": [-1]}, "layer -1 does not exist"),
        ({"rate": 0.74, "align": 64}, "cannot remove 0.74 of a 14x14 map and keep a multiple"),
    ],
)
def test_what_does_not_fit_is_refused(choice, message) -> None:
    with pytest.raises(UserError, match=message):
        rows(**choice)


def test_a_table_is_made_once() -> None:
    spec = MODELS["vit_b"]
    assert spec.window_sizes == (14, 14, 0) * 4
    first, second = (block_table(MergeConfig(), spec.grid, spec.window_sizes) for _ in range(2))
    assert first is second
