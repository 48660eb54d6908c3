"""The options that choose a merging: each reaches the one `MergeConfig` that a command passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.models import ModelSpec
from structsam_export import pipeline
from structsam_export.cli.main import main
from structsam_export.cli.merging_options import MergingOptions
from structsam_export.tune.recipe import Recipe

RATES = (0.0, 0.25, 0.5, 0.75) * 3


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MergeConfig]:
    """`chosen(*arguments)`: what `export` of vit_b is asked to merge; it ends there."""
    found: list[MergeConfig] = []

    def stop(model: ModelSpec, config: MergeConfig, **rest: Any) -> None:
        assert model.name == "vit_b" and not {field.name for field in fields(MergeConfig)} & set(
            rest
        )
        found.append(config)
        raise UserError("asked")

    monkeypatch.setattr(pipeline, "export", stop)

    def call(*arguments: str) -> MergeConfig:
        with pytest.raises(SystemExit):
            main(["export", "--model", "vit_b", *arguments])
        return found.pop()

    return call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {}),
        (("--rate", "0.25"), {"rate": 0.25}),
        (("--rate", "0.1,0.2"), {"rate": (0.1, 0.2)}),
        (("--method", "tome"), {"method": "tome"}),
        (("--layers", "7,8"), {"layers": (7, 8)}),
        (("--placement", "stage"), {"placement": "stage"}),
        (("--attention", "dense"), {"attention": "dense"}),
        (("--option", "operator=central"), {"options": (("operator", "central"),)}),
        (("--align", "8"), {"align": 8}),
        (("--proportional",), {"proportional": True}),
        (("--prompt-aware",), {"prompt_aware": "rank"}),
        (("--prompt-aware", "--prompt-form", "windows"), {"prompt_aware": "windows"}),
    ],
)
def test_every_option_reaches_the_export(
    chosen: Callable[..., MergeConfig], arguments: tuple[str, ...], expected: dict[str, Any]
) -> None:
    assert chosen(*arguments) == MergeConfig(**expected)


def test_every_field_has_its_option() -> None:
    other = {"option": "options", "prompt_form": "prompt_aware", "recipe": "rate"}
    options = {other.get(field.name, field.name) for field in fields(MergingOptions)}
    assert options == {field.name for field in fields(MergeConfig)}


def test_a_recipe_decides_all_but_what_may_stand_beside_it(
    chosen: Callable[..., MergeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.json"
    merging = MergeConfig(rate=RATES, placement="block", options=(("operator", "central"),))
    Recipe("vit_b", merging.to_dict()).save(file)
    found = chosen("--recipe", str(file), "--align", "8", "--attention", "dense")
    assert found == MergeConfig(
        rate=RATES,
        placement="block",
        options=(("operator", "central"),),
        align=8,
        attention="dense",
    )
    for name in ("--rate=0.5", "--layers=all", "--placement=stage", "--method=tome"):
        with pytest.raises(SystemExit):
            main(["export", "--model", "vit_b", "--recipe", str(file), name])
        said = capsys.readouterr().err
        assert f"--recipe says what {name.split('=')[0]} would" in " ".join(said.split())
