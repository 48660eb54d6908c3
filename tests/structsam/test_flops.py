"""The counted multiply-adds equal published numbers, and their parts what they are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.flops import PLACEMENTS, encoder_flops, unmerged_flops
from structsam.methods import METHODS
from structsam.models import MODELS

LAST_FIVE = (7, 8, 9, 10, 11)

# The thesis: ViT-B at rate 0.5, the last five, the global and all layers, GMAC.
THESIS = {
    "tome": (424.21, 394.88, 351.05),
    "tomesd": (424.07, 394.61, 350.75),
    "pitome": (425.96, 398.10, 354.64),
    "gradtome": (424.09, 394.63, 350.81),
}
# The thesis: ViT-B, the last five layers at rates 0.5, 0.6 and 0.7.
GRADTOME = (424.09, 414.99, 406.84)
PITOME_STRIDE = (425.96, 416.86, 408.71)

# StructSAM in the thesis' placement and in ours, GMAC: ViT-B, ViT-L, ViT-H.
STRUCTSAM = {
    0.35: ((384.7, 373.1), (1263.5, 1221.3), (2575.0, 2486.5)),
    0.50: ((349.5, 333.0), (1177.2, 1116.7), (2416.8, 2289.9)),
    0.55: ((339.3, 321.3), (1152.0, 1085.9), (2370.4, 2231.8)),
    0.70: ((311.0, 288.0), (1076.4, 992.0), (2226.7, 2049.7)),
    0.75: ((303.2, 278.6), (1054.7, 964.7), (2185.0, 1996.2)),
}

# The merge step of all 25 windows and of the global map at rate 0.5, head_dim 64, 10^6: energy
# and matching (pooling is a scatter there).
MERGE_STEP = {
    "tome": (15.4, 268.4),
    "tomesd": (11.5, 201.3),
    "vidtome": (11.5, 201.3),
    "pitome": (61.5, 1073.7),
    "gradtome": (17.2, 206.0),
    "structsam": (5.6, 4.7),
    "algm": (0.5, 0.4),
}


@pytest.mark.parametrize(
    ("model", "gmac"), [("vit_b", 486.4166), ("vit_l", 1493.8470), ("vit_h", 2982.2)]
)
def test_stock_models_cost_what_fvcore_and_the_papers_say(model: str, gmac: float) -> None:
    assert unmerged_flops(MODELS[model]).gmac == pytest.approx(gmac, abs=0.05)


def test_parts_of_vit_b() -> None:
    flops = unmerged_flops(MODELS["vit_b"])

    def part(kind: str, name: str) -> float:
        return sum(getattr(b, name) for b in flops.blocks if b.kind == kind) / 1e9

    assert flops.patch_embedding / 1e9 == pytest.approx(2.416, abs=1e-3)
    assert flops.neck / 1e9 == pytest.approx(3.221, abs=1e-3)
    expected = {
        "window": {"qkv": 69.363, "qk_av": 11.801, "relative": 0.843, "proj": 23.121},
        "global": {"qkv": 28.991, "qk_av": 103.079, "relative": 1.611, "proj": 9.664},
    }
    for kind, parts in expected.items():
        for name, gmac in parts.items():
            assert part(kind, name) == pytest.approx(gmac, abs=1e-3), (kind, name)
    assert part("window", "mlp") + part("global", "mlp") == pytest.approx(231.928, abs=1e-3)
    assert part("window", "norm") + part("global", "norm") == pytest.approx(0.377, abs=1e-3)


@pytest.mark.parametrize("method", THESIS)
@pytest.mark.parametrize("column", range(3), ids=["last five", "global", "all"])
def test_counts_of_the_thesis(method: str, column: int) -> None:
    config = MergeConfig(method, 0.5, (LAST_FIVE, "global", "all")[column])
    gmac = encoder_flops(MODELS["vit_b"], config, "thesis").gmac
    assert gmac == pytest.approx(THESIS[method][column], abs=0.0051)


@pytest.mark.parametrize("destinations", ["stride", "rand2x2", "rand25"])
def test_all_three_tomesd_of_the_thesis_cost_the_same(destinations: str) -> None:
    config = MergeConfig("tomesd", 0.5, LAST_FIVE, options=(("destinations", destinations),))
    gmac = encoder_flops(MODELS["vit_b"], config, "thesis").gmac
    assert gmac == pytest.approx(424.07, abs=0.0051)


@pytest.mark.parametrize("column", range(3), ids=["0.5", "0.6", "0.7"])
def test_rates_of_the_thesis(column: int) -> None:
    rate = (0.5, 0.6, 0.7)[column]
    gradtome = MergeConfig("gradtome", rate, LAST_FIVE)
    stride = MergeConfig("pitome", rate, LAST_FIVE, options=(("variant", "stride"),))
    for config, published in ((gradtome, GRADTOME), (stride, PITOME_STRIDE)):
        gmac = encoder_flops(MODELS["vit_b"], config, "thesis").gmac
        assert gmac == pytest.approx(published[column], abs=0.0051)


def test_pitome_of_the_thesis_on_all_channels() -> None:
    """The thesis' "concat" matches on all 12 heads; an option that we do not have."""
    flops = encoder_flops(MODELS["vit_b"], MergeConfig("pitome", 0.5, LAST_FIVE), "thesis")
    concat = flops.total + (12 - 1) * flops.sum("matching")
    assert concat / 1e9 == pytest.approx(451.61, abs=0.0051)


@pytest.mark.parametrize("rate", STRUCTSAM)
@pytest.mark.parametrize(("column", "model"), list(enumerate(["vit_b", "vit_l", "vit_h"])))
def test_structsam_costs_what_the_literature_implies(rate: float, column: int, model: str) -> None:
    for placement, expected in zip(("thesis", "attention"), STRUCTSAM[rate][column], strict=True):
        gmac = encoder_flops(MODELS[model], MergeConfig(rate=rate), placement).gmac
        assert gmac == pytest.approx(expected, abs=0.051), placement


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("global", (387.4, 382.1)), ("window", (438.4, 425.6)), (LAST_FIVE, (418.9, 411.4))],
)
def test_structsam_in_some_layers(layers: Any, expected: tuple[float, float]) -> None:
    config = MergeConfig(rate=0.55, layers=layers)
    for placement, gmac in zip(("thesis", "attention"), expected, strict=True):
        flops = encoder_flops(MODELS["vit_b"], config, placement)
        assert flops.gmac == pytest.approx(gmac, abs=0.051), placement


@pytest.mark.parametrize("method", MERGE_STEP)
def test_the_merge_step_costs_what_the_literature_implies(method: str) -> None:
    flops = encoder_flops(MODELS["vit_b"], MergeConfig(method, 0.5))
    for block, expected in zip(flops.blocks[1:3], MERGE_STEP[method], strict=True):
        assert (block.energy + block.matching) / 1e6 == pytest.approx(expected, abs=0.051)


def test_pooling_is_a_product_of_every_source_with_every_destination() -> None:
    def pooling(method: str, rate: float, **options: Any) -> list[int]:
        config = MergeConfig(method, rate, options=tuple(options.items()))
        return [b.pooling for b in encoder_flops(MODELS["vit_b"], config).blocks[1:3]]

    # 36 cells of a window's 49 and 751 of 1024 at 0.55: 108 and 2253 tokens
    assert pooling("tomesd", 0.55) == [25 * 49 * 108 * 768, 1024 * 2253 * 768]
    assert pooling("tomesd", 0.55, feature="replace") == [0, 0]
    assert pooling("vidtome", 0.55) == [0, 0]
    assert pooling("vidtome", 0.55, feature="mean") == pooling("tomesd", 0.55)
    assert pooling("gradtome", 0.55) == pooling("tomesd", 0.55)
    assert pooling("tome", 0.5) == [25 * 98 * 98 * 768, 2048 * 2048 * 768]
    assert pooling("pitome", 0.5) == pooling("tome", 0.5)
    assert pooling("pitome", 0.5, variant="stride") == pooling("tomesd", 0.5)
    assert pooling("structsam", 0.5) == pooling("algm", 0.5) == [0, 0]
    # 33 cells of 99 tokens and 683 of 2049
    assert pooling("structsam", 0.5, variant="no_cell") == [
        25 * 33 * 99 * 768,
        683 * 2049 * 768,
    ]


def test_cubistmerge_multiplies_neighbours_of_all_channels() -> None:
    block = encoder_flops(MODELS["vit_b"], MergeConfig("cubistmerge", 0.5)).blocks[2]
    rho_h, rho_w = METHODS["cubistmerge"]((64, 64), 0.5).removed_per_line  # type: ignore[attr-defined]
    assert block.slots == (64 - rho_h) * (64 - rho_w)
    assert block.energy == (64 * 63 + (64 - rho_w) * 63) * 768
    # slots stand on the smaller grid, so queries meet fewer relative positions
    assert block.relative == block.slots * 768 * (128 - rho_h - rho_w)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layers", ["all", "global", "window", LAST_FIVE])
def test_the_thesis_projects_all_tokens_and_scatters(method: str, layers: Any) -> None:
    ours, theirs = (
        encoder_flops(MODELS["vit_b"], MergeConfig(method, 0.4, layers), placement)
        for placement in ("attention", "thesis")
    )
    stock = unmerged_flops(MODELS["vit_b"])
    assert theirs.sum("proj") == stock.sum("proj") > ours.sum("proj")
    assert theirs.sum("pooling") == theirs.folded_extra == 0
    assert (theirs.sum("energy"), theirs.placement) == (ours.sum("energy"), "thesis")
    merging = {b.index for b in ours.blocks if b.overhead}
    wanted = {"all": set(range(12)), "global": {2, 5, 8, 11}, LAST_FIVE: set(LAST_FIVE)}
    assert merging == wanted.get(layers, {0, 1, 3, 4, 6, 7, 9, 10})


def test_the_thesis_removes_its_own_count_of_tokens() -> None:
    def kept(method: str, placement: str) -> list[int]:
        config = MergeConfig(method, 0.55 if METHODS[method].max_rate > 0.5 else 0.45)
        return [b.slots for b in encoder_flops(MODELS["vit_b"], config, placement).blocks[1:3]]

    assert kept("tomesd", "thesis") == [89, 1844]
    assert kept("tomesd", "attention") == [88, 1843]
    assert kept("structsam", "thesis") == kept("structsam", "attention") == [88, 1843]
    assert kept("cubistmerge", "thesis") == kept("cubistmerge", "attention")
    assert kept("tome", "thesis") == [108, 2253]


def test_placements_are_checked() -> None:
    assert PLACEMENTS == ("attention", "block", "stage", "thesis")
    with pytest.raises(UserError, match="Use one of: attention, block, stage, thesis"):
        encoder_flops(MODELS["vit_b"], MergeConfig(), "mlp")
    with pytest.raises(UserError, match="thesis' code has no align"):
        encoder_flops(MODELS["vit_b"], MergeConfig(align=8), "thesis")


def test_windows_around_a_box_merge_less() -> None:
    flops = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5, prompt_aware="windows"))
    block = flops.blocks[0]
    assert [(tier.maps, tier.slots) for tier in block.tiers] == [(8, 145), (17, 73)]
    assert block.kept == (8 * 145 + 17 * 73) / (25 * 196) and block.slots == 96
    assert block.logits == 12 * (8 * 145**2 + 17 * 73**2)
    assert block.qkv == 3 * (8 * 145 + 17 * 73) * 768**2
    assert [tier.slots for tier in flops.blocks[2].tiers] == [2047]
    ranked = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5, prompt_aware="rank"))
    assert ranked == encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5))
    assert flops.skipped == 0 < ranked.skipped  # windows in two tiers: which are at the edge?


@pytest.mark.parametrize(("rate", "padding"), [(0.25, 8 * 33 + 81), (0.5, 201), (0.75, 201)])
def test_padding_is_counted_but_not_run(rate: float, padding: int) -> None:
    """64 tokens in windows of 14: eight windows have 8 x 14 real tokens, and the last has 8 x 8.

    These have 21 and 33 cells of padding. At rate 0.25 17 cells merge; of the others every token
    has a slot: 17 + 4*4 and 17 + 16*4.
    """
    for placement, rows in (("attention", 0), ("block", 8), ("stage", 8)):
        flops = encoder_flops(MODELS["vit_b"], MergeConfig(rate=rate, placement=placement))
        norms = 10 * padding * 768 if placement == "stage" else 0
        expected = (3 * (padding - 1) + padding + rows * padding) * 768**2 + norms
        assert [block.skipped for block in flops.blocks] == [
            0 if block.kind == "global" else expected for block in flops.blocks
        ]
        assert flops.executed == flops.total + flops.folded_extra - 8 * expected
    tome = encoder_flops(MODELS["vit_b"], MergeConfig("tome", rate=min(rate, 0.5)))
    assert tome.skipped == 0
    thesis = encoder_flops(MODELS["vit_b"], MergeConfig(rate=rate), "thesis")
    assert thesis.skipped == 0


def test_one_rate_per_block() -> None:
    rates = (0.25, *(0.0,) * 10, 0.75)
    flops = encoder_flops(MODELS["vit_b"], MergeConfig(rate=rates))
    assert [b.slots for b in flops.blocks] == [145, *[196, 4096, 196] * 3, 196, 1024]
    assert [bool(b.overhead) for b in flops.blocks] == [bool(rate) for rate in rates]


def test_aligned_tokens_are_counted() -> None:
    flops = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5, align=8))
    assert [b.slots for b in flops.blocks[1:3]] == [88, 2032]


def test_parts_make_up_the_whole() -> None:
    for method in METHODS:
        flops = encoder_flops(MODELS["vit_b"], MergeConfig(method, 0.5))
        merging = sum(flops.sum(part) for part in ("energy", "matching", "pooling"))
        assert flops.overhead == merging > 0
        attention = sum(flops.sum(part) for part in ("qkv", "qk_av", "relative", "proj"))
        rest = flops.sum("mlp") + flops.sum("norm") + flops.patch_embedding + flops.neck
        assert flops.total == attention + merging + rest


def test_folded_attention_shows_what_it_executes_beyond_the_count() -> None:
    dense = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.0, attention="dense"))
    folded = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.0, attention="folded"))
    assert dense.total == folded.total
    assert dense.folded_extra == 0
    # d + H + W = 64 + 64 + 64 = 192 needs no padding; a window's 64 + 14 + 14 = 92 becomes 96
    assert folded.blocks[2].folded_extra == 12 * 4096**2 * 128
    assert folded.blocks[0].folded_extra == 12 * 25 * 196**2 * 32
    assert folded.executed == folded.total + folded.folded_extra
    # values as wide as queries and keys cost as much again
    padded = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.0, attention="folded_padded"))
    assert padded.total == folded.total
    assert padded.folded_extra == 2 * folded.folded_extra
    mixed = MergeConfig(rate=0.0, attention="global=folded,window=dense")
    blocks = encoder_flops(MODELS["vit_b"], mixed).blocks
    assert blocks[2].folded_extra == folded.blocks[2].folded_extra
    assert blocks[0].folded_extra == 0
    # a mask of h * M * M is written, and read; the folded channels of q and k do not exist
    wide = 2 * 12 * 128 * 4096
    assert dense.blocks[2].traffic - (folded.blocks[2].traffic - wide) == 2 * 12 * 4096**2


def test_proportional_attention_folds_one_more_channel() -> None:
    plain = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5))
    sized = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5, proportional=True))
    assert plain.total == sized.total
    # 64 + 14 + 14 + 1 = 93 still fits 96; 64 + 64 + 64 + 1 = 193 becomes 200
    assert plain.blocks[0].folded_extra == sized.blocks[0].folded_extra
    assert sized.blocks[2].folded_extra == 12 * 2047**2 * 136
    # where nothing is merged, every size is one
    unmerged = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.0, proportional=True))
    assert unmerged.blocks[2].folded_extra == 12 * 4096**2 * 128


def test_tokens_kept_stand_beside_the_rate() -> None:
    flops = encoder_flops(MODELS["vit_b"], MergeConfig(rate=0.5))
    assert [(b.tokens, b.slots) for b in flops.blocks[1:3]] == [(196, 97), (4096, 2047)]
    assert flops.blocks[2].kept == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("prompt_aware", [None, "windows"])
def test_json_form_survives_a_round_trip(prompt_aware: str | None) -> None:
    config = MergeConfig(rate=0.5, prompt_aware=prompt_aware)
    data = encoder_flops(MODELS["vit_t"], config).to_dict()
    assert json.loads(json.dumps(data)) == data
    blocks = sum(block["total"] for block in data["blocks"])
    assert data["total"] == data["patch_embedding"] + data["neck"] + blocks
    assert data["overhead"] == data["energy"] + data["matching"] + data["pooling"]


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="layer 99 does not exist"):
        encoder_flops(MODELS["vit_b"], MergeConfig(layers=(99,)))
