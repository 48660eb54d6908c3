"""The formula equals what fvcore counts in the real modules, for every method and its options.

fvcore sees matrix products, convolutions and LayerNorm. Energies are element-wise and free for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from structsam.apply import apply_merging, merged_blocks
from structsam.config import MergeConfig
from structsam.flops import encoder_flops, unmerged_flops
from structsam.methods import METHODS
from structsam.methods.options import method_options
from structsam.models import MODELS, ModelSpec
from structsam.models.load import build_sam


def counted_by_fvcore(module: torch.nn.Module, *shape: int) -> int:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, torch.zeros(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        return int(analysis.total())


def variants() -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Every method by default, and with every other choice of each of its options."""
    for name, method in METHODS.items():
        yield name, ()
        for option in method_options(method).values():
            for choice in option.choices:
                if choice != option.default:
                    yield name, ((option.name, choice),)


def configs() -> Iterator[Any]:
    """Every variant, every method from a low rate to its highest, and the options of merging."""
    for name, options in variants():
        layers = "global" if ("cell_size", 4) in options else "all"  # 4 does not divide 14
        label = "-".join([name, *(f"{option}={value}" for option, value in options)])
        yield pytest.param(MergeConfig(name, 0.4, layers, options=options), id=label)
        limit = METHODS[name]((16, 16), 0.0, **dict(options)).rate_limit
        if not options or limit != METHODS[name].max_rate:
            # the highest rate may need more than a window of 14 allows
            highest = MergeConfig(name, limit, "global", options=options)
            yield pytest.param(highest, id=f"{label}-highest")
    for name in METHODS:
        low = MergeConfig(name, (0.05, 0.2, 0.0), proportional=True)
        yield pytest.param(low, id=f"{name}-low-proportional")
        dense = MergeConfig(name, 0.3, "global", "dense", align=8, proportional=True)
        yield pytest.param(dense, id=f"{name}-align-proportional-dense")
    for name in METHODS:
        for placement in ("block", "stage"):
            config = MergeConfig(name, (0.4, 0.3, 0.3), placement=placement)
            yield pytest.param(config, id=f"{name}-{placement}")
    for form in ("rank", "windows"):
        for rate in (0.15, 0.5, 0.75):
            config = MergeConfig(rate=rate, prompt_aware=form, proportional=True)
            yield pytest.param(config, id=f"prompt_aware-{form}-{rate}")


def test_fvcore_counts_the_same_in_the_stock_encoder(
    tiny_sam_factory: Callable[..., Any], tiny_spec: ModelSpec
) -> None:
    size = tiny_spec.image_size
    counted = counted_by_fvcore(tiny_sam_factory().image_encoder, 1, 3, size, size)
    # fvcore takes an einsum from a printed figure of four digits: 28 units are missing here
    assert counted == pytest.approx(unmerged_flops(tiny_spec).total, rel=1e-6)


@pytest.mark.parametrize("attention", ["dense", "folded", "folded_padded"])
@pytest.mark.parametrize("layers", ["all", "global"])
def test_fvcore_counts_the_same_at_rate_0(
    tiny_sam_factory: Callable[..., Any], tiny_spec: ModelSpec, attention: str, layers: str
) -> None:
    config = MergeConfig(rate=0.0, layers=layers, attention=attention, proportional=True)
    encoder = apply_merging(tiny_sam_factory(), config).image_encoder
    size = tiny_spec.image_size
    assert counted_by_fvcore(encoder, 1, 3, size, size) == encoder_flops(tiny_spec, config).executed


@pytest.mark.parametrize("config", list(configs()))
def test_fvcore_counts_the_same_in_the_merged_encoder(
    tiny_sam_factory: Callable[..., Any], tiny_spec: ModelSpec, config: MergeConfig
) -> None:
    encoder = apply_merging(tiny_sam_factory(), config).image_encoder
    flops = encoder_flops(tiny_spec, config)
    size = tiny_spec.image_size
    counted = counted_by_fvcore(encoder, 1, 3, size, size)
    assert counted == flops.executed - flops.sum("energy")
    kept = [tuple(tier.slots for tier in b.tiers) for b in flops.blocks if b.rate]
    real = [tuple(t.method.num_slots for t in b.tiers) for b in merged_blocks(encoder) if b.tiers]
    assert kept == real


@pytest.mark.parametrize(("placement", "planning"), [("block", range(5)), ("stage", [0, 2, 4])])
def test_fvcore_counts_the_same_in_runs_of_blocks(
    tiny_sam_factory: Callable[..., Any],
    tiny_spec: ModelSpec,
    placement: str,
    planning: Sequence[int],
) -> None:
    """Two window blocks, two global ones, and a window block: a stage plans once."""
    spec = replace(tiny_spec, depth=5, global_blocks=(2, 3))
    config = MergeConfig("tome", 0.4, placement=placement)
    encoder = apply_merging(tiny_sam_factory(depth=5, global_blocks=(2, 3)), config).image_encoder
    flops = encoder_flops(spec, config)
    counted = counted_by_fvcore(encoder, 1, 3, spec.image_size, spec.image_size)
    assert counted == flops.executed - flops.sum("energy")
    assert [block.matching > 0 for block in flops.blocks] == [i in planning for i in range(5)]


@pytest.fixture(scope="module")
def two_blocks_of_vit_b() -> Any:
    """One window block and one global block of ViT-B's size."""
    spec = MODELS["vit_b"]
    small = ModelSpec("two", "two blocks", spec.embed_dim, 2, spec.num_heads, (1,))
    return small, build_sam(small).image_encoder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_fvcore_counts_the_same_in_blocks_of_vit_b(two_blocks_of_vit_b: Any, name: str) -> None:
    spec, encoder = two_blocks_of_vit_b
    config = MergeConfig(name, 0.5)
    blocks = encoder_flops(spec, config).blocks
    merged = merged_blocks(apply_merging(encoder, config))
    for block, module in zip(blocks, merged, strict=True):
        counted = counted_by_fvcore(module, 1, 64, 64, spec.embed_dim)
        executed = block.total + block.folded_extra - block.skipped
        assert counted == executed - block.energy, block.kind
