"""`structsam-export flops`: parts, placements, all options of merging, and all methods at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.flops import encoder_flops
from structsam.methods import METHODS
from structsam.models import MODELS
from structsam_export.bench.flops_table import compare_methods, kept_text
from structsam_export.cli import terminal
from structsam_export.cli.main import main
from structsam_export.tune.recipe import Recipe

VIT_B = MODELS["vit_b"]


@pytest.fixture
def flops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`flops("--rate", "0.5")`: what the command prints; its error line when it is refused."""
    monkeypatch.setattr(terminal, "WIDTH", 200)  # rows in one piece

    def call(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["flops", *arguments])
        shown = capsys.readouterr()
        assert end.value.code in (0, 2) and "Traceback" not in shown.err
        return shown.out if end.value.code == 0 else shown.err

    return call


@pytest.mark.parametrize(
    ("arguments", "config", "placement"),
    [
        ((), MergeConfig(), "attention"),
        (("--placement", "thesis", "--method", "tome"), MergeConfig("tome"), "thesis"),
        (("--layers", "7,8"), MergeConfig(layers=(7, 8)), "attention"),
        (
            ("--method", "pitome", "--option", "variant=stride", "--rate", "0.7"),
            MergeConfig("pitome", 0.7, options=(("variant", "stride"),)),
            "attention",
        ),
        (("--align", "8"), MergeConfig(align=8), "attention"),
        (("--proportional",), MergeConfig(proportional=True), "attention"),
        (("--attention", "dense"), MergeConfig(attention="dense"), "attention"),
        (
            ("--prompt-aware", "--prompt-form", "windows"),
            MergeConfig(prompt_aware="windows"),
            "attention",
        ),
    ],
)
def test_every_option_reaches_the_count(
    flops: Callable[..., str], arguments: tuple[str, ...], config: MergeConfig, placement: str
) -> None:
    counted = json.loads(flops(*arguments, "--json"))
    assert counted == encoder_flops(VIT_B, config, placement).to_dict()


def test_the_table_splits_the_merge_step(flops: Callable[..., str]) -> None:
    shown = flops("--method", "gradtome", "--rate", "0.5")
    for column in ("energy", "matching", "pooling", "placement attention"):
        assert column in shown
    row = next(line for line in shown.splitlines() if "2047 of 4096" in line)
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[10:13] == ["0.005", "0.201", "1.611"]
    last = [cell.strip() for cell in shown.splitlines()[-3].split("│")]
    everything = encoder_flops(VIT_B, MergeConfig("gradtome"))
    assert last[1] == "all" and last[10:14] == ["0.06", "0.90", "7.19", f"{everything.gmac:.2f}"]


def test_the_table_shows_tiers(flops: Callable[..., str]) -> None:
    shown = flops("--prompt-aware", "--prompt-form", "windows")
    assert "8 x 145, 17 x 73 of 196" in shown and "2047 of 4096" in shown


def test_all_methods_side_by_side(flops: Callable[..., str]) -> None:
    shown = flops("--method", "all", "--rate", "0.6", "--placement", "thesis")
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert list(rows) == list(METHODS)
    for name in METHODS:
        if METHODS[name].max_rate == 0.5:
            assert "above its limit 0.5" in rows[name]
        else:
            counted = encoder_flops(VIT_B, MergeConfig(name, 0.6), "thesis")
            assert f"{counted.gmac:.2f}" in rows[name] and kept_text(counted) in rows[name]


def test_all_methods_as_json(flops: Callable[..., str]) -> None:
    facts = json.loads(flops("--method", "all", "--rate", "0.6", "--json"))
    assert list(facts) == list(METHODS)
    assert facts["tome"] == "above its limit 0.5"
    assert facts["algm"] == encoder_flops(VIT_B, MergeConfig("algm", 0.6)).to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--placement", "mlp"), "Use one of: attention, block, stage, thesis"),
        (("--method", "all", "--placement", "mlp"), "Use one of: attention, block, stage, thesis"),
        (("--placement", "thesis", "--align", "8"), "thesis' code has no align"),
        (("--method", "all", "--option", "operator=central"), "belongs to one method"),
        (("--method", "all", "--layers", "99"), "layer 99 does not exist"),
        (("--method", "all", "--rate", "0.9"), "rate 0.9 is outside"),
        (("--method", "all", "--rate", "-1"), "negative"),
        (("--method", "tome", "--rate", "0.6"), "outside [0, 0.5]"),
        (("--option", "operator=prewitt"), "sobel, central"),
    ],
)
def test_refusals(flops: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    shown = flops(*arguments)
    assert shown.startswith("error: ") and message in shown


def test_methods_are_compared_with_a_rate_per_block() -> None:
    rates: Any = (*[0.5] * 11, 0.6)
    compared = compare_methods(VIT_B, rate=rates)
    assert compared["pitome"] == "above its limit 0.5"
    assert not isinstance(compared["structsam"], str)
    with pytest.raises(UserError, match="3 rates were given"):
        compare_methods(VIT_B, rate=(0.1, 0.2, 0.3))


def test_a_count_that_cannot_be_had_is_told_as_it_is() -> None:
    # 98 of 196 is tome's limit, and 96 would be the next multiple of 8
    refused = compare_methods(VIT_B, rate=0.5, layers="window", align=8)["tome"]
    assert isinstance(refused, str) and "multiple of 8" in refused


def test_a_recipe_is_counted(flops: Callable[..., str], tmp_path: Path) -> None:
    config = MergeConfig(
        rate=(0.0, 0.25, 0.5, 0.75) * 3, placement="block", options=(("operator", "central"),)
    )
    file = tmp_path / "recipe.json"
    Recipe("vit_b", config.to_dict()).save(file)
    counted = json.loads(flops("--recipe", str(file), "--json"))
    assert counted == json.loads(json.dumps(encoder_flops(VIT_B, config).to_dict()))
    assert str(file) in flops("--recipe", str(file)).replace("\n", "")
    assert "--rate" in flops("--recipe", str(file), "--rate", "0.5")
    assert "found for vit_b" in flops("--recipe", str(file), "--model", "vit_l")
    assert "for an input of 1024" in flops("--recipe", str(file), "--image-size", "768")
