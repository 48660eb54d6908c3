"""Steps add up to what is counted elsewhere, and their parameters to those of the modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from structsam.config import PLACEMENTS, MergeConfig
from structsam.flops import encoder_flops
from structsam.merging.attention_forms import FORMS
from structsam.models import MODELS, ModelSpec
from structsam.step_costs import STEPS, BlockCost, encoder_costs

VIT_B = MODELS["vit_b"]
NORM_UNITS = 5


def total(blocks: tuple[BlockCost, ...], part: str) -> int:
    return sum(block.sum(part) for block in blocks)


def of_step(blocks: tuple[BlockCost, ...], name: str, part: str) -> int:
    return sum(getattr(s, part) for block in blocks for s in block.steps if s.name == name)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("method", ["structsam", "tome"])
def test_multiply_adds_are_those_that_are_executed(
    method: str, placement: str, attention: str
) -> None:
    """Norms are passes over memory here, and units of work there."""
    for rate in (0.0, 0.5):
        config = MergeConfig(method, rate, placement=placement, attention=attention)
        counted = encoder_flops(VIT_B, config)
        channels = VIT_B.embed_dim
        normed = counted.sum("norm")
        if placement == "stage" and rate:  # norms leave padding out as well
            padding = sum(
                b.mlp // (8 * channels**2) - b.mlp_traffic // (10 * channels)
                for b in counted.blocks
            )
            normed -= 2 * NORM_UNITS * padding * channels
            assert method == "tome" or padding > 0
        assert total(encoder_costs(VIT_B, config), "macs") == counted.executed - normed


def test_weights_are_the_parameters_of_the_encoder(
    tiny_sam_factory: Callable[..., Any], tiny_spec: ModelSpec
) -> None:
    parameters = sum(p.numel() for p in tiny_sam_factory().image_encoder.parameters())
    for rate in (0.0, 0.5):
        assert total(encoder_costs(tiny_spec, MergeConfig(rate=rate)), "weights") == parameters


def test_a_mask_is_written_and_read_and_folding_has_none() -> None:
    heads, windows = VIT_B.num_heads, 8 * 25
    unmerged, merged = (windows * n**2 + 4 * m**2 for n, m in ((196, 4096), (97, 2047)))
    for form, kind in FORMS.items():
        for rate, logits in ((0.0, unmerged), (0.5, merged)):
            found = total(encoder_costs(VIT_B, MergeConfig(rate=rate, attention=form)), "mask")
            assert found == (0 if kind.folded else 2 * heads * logits)
    mixed = MergeConfig(rate=0.5, attention="global=dense,window=folded")
    assert total(encoder_costs(VIT_B, mixed), "mask") == 2 * heads * 4 * 2047**2


def test_padded_values_are_multiplied_and_moved() -> None:
    """ViT-B's heads have 64 channels; folding adds 128 in global blocks and 32 in windows."""
    plain, padded = (  # where nothing is fused, and both hold their logits
        encoder_costs(VIT_B, MergeConfig(rate=0.0, attention=form), fused=False)
        for form in ("folded", "folded_padded")
    )
    logits, rows = {"global": 4096**2, "window": 25 * 196**2}, {"global": 4096, "window": 25 * 196}
    added = {"global": 128, "window": 32}
    for narrow, wide in zip(plain[1:-1], padded[1:-1], strict=True):
        more = 12 * added[narrow.kind]
        assert wide.sum("macs") - narrow.sum("macs") == more * logits[narrow.kind]
        moved = wide.sum("activations") - narrow.sum("activations")
        assert moved == 2 * more * rows[narrow.kind]


def test_activations_of_an_unmerged_window_block_counted_by_hand() -> None:
    config = MergeConfig(rate=0.0, attention="dense")
    block = encoder_costs(VIT_B, config)[1]
    rows, pixels, channels, heads = 25 * 196, 4096, 768, 12
    expected = {
        "attention": rows * (1 + 3 + 3 + 1 + 1 + 1) * channels,  # qkv, attention, projection
        "MLP": pixels * (1 + 4 + 4 + 1) * channels,
        "windows": 2 * (pixels + rows) * channels,
        "rest": 2 * (1 + 1 + 1) * pixels * channels,  # two norms, two sums
    }
    assert {step.name: step.activations for step in block.steps} == expected
    (attention,) = (s for s in encoder_costs(VIT_B, config, fused=False)[1].steps if s.mask)
    assert attention.activations == expected["attention"] + 4 * heads * 25 * 196**2


def test_what_merging_moves_depends_on_the_placement() -> None:
    per_plan = (4096 + 25 * 97) * 768
    moved = {}
    for placement in PLACEMENTS:
        costs = encoder_costs(VIT_B, MergeConfig(rate=0.5, placement=placement, layers="window"))
        moved[placement] = of_step(costs, "merge", "activations") / per_plan
        assert of_step(costs, "unmerge", "activations") == moved[placement] * per_plan
        assert {s.name for block in costs for s in block.steps} <= set(STEPS)
        assert of_step(costs, "windows", "activations") == 0
    assert moved == {"attention": 8, "block": 16, "stage": 4}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_held_where_a_form_or_a_runtime_does_not_fuse(form: str) -> None:
    config = MergeConfig(rate=0.0, attention=form)
    fused, split = (of_step(encoder_costs(VIT_B, config, f), "attention", "activations")
                    for f in (True, False))  # fmt: skip
    held = 4 * 12 * (8 * 25 * 196**2 + 4 * 4096**2)  # written, normalised (twice) and read
    assert split - fused == (0 if form == "folded" else held)


#: Kernels in encoders of ViT-T at FP16, read in engines of TensorRT for RTX 1.7.1 for sm89.
ENGINES = {("attention", 0.0): 168, ("attention", 0.5): 200, ("block", 0.5): 212,
           ("stage", 0.5): 188}  # fmt: skip


@pytest.mark.parametrize(("placement", "rate"), ENGINES)
def test_kernels_are_counted_as_engines_list_them(placement: str, rate: float) -> None:
    config = MergeConfig(rate=rate, placement=placement, attention="folded_padded")
    found = total(encoder_costs(MODELS["vit_t"], config), "kernels")
    assert found == pytest.approx(ENGINES[placement, rate], rel=0.05)
    split = total(encoder_costs(MODELS["vit_t"], replace(config, attention="folded")), "kernels")
    assert split == found + 6 * 12
