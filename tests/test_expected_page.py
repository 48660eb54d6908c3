"""docs/expected.md equals what scripts/expected_table.py makes of it, and keeps its word."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from structsam.config import PLACEMENTS
from structsam.merging.attention_forms import FORMS
from structsam_export.devices import DEVICES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "expected.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "expected_table", ROOT / "scripts/expected_table.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_prints(script: Any) -> None:
    assert script.page() == PAGE, "run: python scripts/expected_table.py --write"


def test_every_device_placement_and_form_has_its_row() -> None:
    parts = PAGE.split("\n### ")[1:]
    assert [part.splitlines()[0] for part in parts] == [d.title for d in DEVICES.values()]
    for part in parts:
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| 0")]
        for rate, placements in (("0", ("",)), ("0.5", PLACEMENTS), ("0.7", PLACEMENTS)):
            for placement in placements:
                told = [row for row in rows if (row[0], row[1]) == (f"| {rate}", placement)]
                assert {f for row in told for f in row[2].split(", ")} == {
                    f"`{form}`" for form in FORMS
                }


@pytest.mark.parametrize("bandwidth", [6e9, 12e9, 20e9])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_model_agrees_with_the_cpu_within_the_factors_of_the_page(
    script: Any, placement: str, bandwidth: float
) -> None:
    text = " ".join(PAGE.split())
    assert all(f"within a factor of {factor}" in text for factor in (1.3, 2.1))
    for group, (predicted, measured) in script.cpu_shares(placement, bandwidth).items():
        factor = max(predicted / measured, measured / predicted)
        large = group in ("attention", "MLP") or bandwidth == script.CPU_BANDWIDTH
        assert factor < (1.3 if large else 2.1), group
