"""docs/compute.md equals what scripts/compute_table.py makes of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam.flops import encoder_flops
from structsam.methods import METHODS
from structsam.models import MODELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "compute_table", ROOT / "scripts/compute_table.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_is_what_the_script_prints(script: Any) -> None:
    page = (ROOT / "docs" / "compute.md").read_text(encoding="utf-8")
    assert script.page() == page, "run: python scripts/compute_table.py --write"


def test_every_table_is_on_the_page(script: Any) -> None:
    page = (ROOT / "docs" / "compute.md").read_text(encoding="utf-8")
    assert [name for _, name, _ in script.SECTION.findall(page)] == list(script.TABLES)
    counts = script.counts_of(MODELS["vit_b"])
    assert all(f"| {name} | " in counts for name in METHODS)


@pytest.mark.parametrize("placement", ["attention", "thesis"])
@pytest.mark.parametrize("method", ["structsam", "tomesd", "vidtome", "algm"])
@pytest.mark.parametrize("model", ["vit_b", "vit_l", "vit_h"])
def test_the_script_counts_what_the_package_counts(
    script: Any, placement: str, method: str, model: str
) -> None:
    spec = MODELS[model]
    flops = encoder_flops(spec, MergeConfig(method, script.PAPER_RATE), placement)
    slots = {block.kind: block.slots for block in flops.blocks}
    merging = script.merging_of(spec, method) + flops.sum("pooling")
    counted = script.total(spec, slots["window"], slots["global"], merging, placement)
    assert counted == pytest.approx(flops.gmac, rel=1e-12)


@pytest.mark.parametrize("placement", ["attention", "thesis"])
def test_a_single_rate_costs_what_it_was_asked_for(script: Any, placement: str) -> None:
    spec = MODELS["vit_b"]
    rate = script.single_rate(spec, "tomesd", 347.8, placement)
    merging = script.merging_of(spec, "tomesd")
    cost = script.total(spec, 196 * (1 - rate), 4096 * (1 - rate), merging, placement)
    assert cost == pytest.approx(347.8, abs=1e-6)


def test_the_published_numbers_of_the_paper_are_missed_at_its_rate(script: Any) -> None:
    for method, published in script.PAPER.items():
        for model, gmac in zip(("vit_b", "vit_l"), published, strict=True):
            for placement in ("attention", "thesis"):
                config = MergeConfig(method, script.PAPER_RATE)
                counted = encoder_flops(MODELS[model], config, placement).gmac
                assert gmac - counted > 8, (method, model, placement)
