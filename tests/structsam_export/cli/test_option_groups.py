"""Groups of options: Typer sees each option, the command gets one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from structsam_export.cli.option_groups import option_names, takes_groups


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1, help="Of the sheet.")]
    deep_blue: Annotated[bool, typer.Option("--blue", help="Its colour.")] = False
    names: Annotated[list[str] | None, typer.Option(help="Repeat it.")] = None


def made(got):
    app = typer.Typer()

    @app.command()
    @takes_groups
    def draw(
        context: typer.Context,
        *,
        file: Annotated[str, typer.Argument()] = "none",
        size: Size,
        count: int = 3,
    ) -> None:
        """Draw it."""
        source = context.get_parameter_source("width")
        got.append((file, size, count, source.name if source else None))

    return app


def test_a_group_is_one_object_with_what_was_typed_and_its_defaults():
    got = []
    runner = CliRunner()
    typed = ["sheet", "--width", "7", "--blue", "--names", "a", "--names", "b"]
    assert runner.invoke(made(got), typed).exit_code == 0
    assert runner.invoke(made(got), ["--width", "1", "--count", "4"]).exit_code == 0
    assert got == [
        ("sheet", Size(7, True, ["a", "b"]), 3, "COMMANDLINE"),
        ("none", Size(1), 4, "COMMANDLINE"),
    ]


def test_limits_and_help_of_a_groups_options_hold():
    runner, app = CliRunner(), made([])
    assert runner.invoke(app, ["--width", "0"]).exit_code == 2
    assert runner.invoke(app, []).exit_code == 2  # a field without a default is required
    told = runner.invoke(app, ["--help"]).output
    places = [told.index(name) for name in ("--width", "--blue", "--names", "--count")]
    assert places == sorted(places) and "Of the sheet." in told
    assert "--size" not in told
    assert option_names(Size) == ("width", "deep_blue", "names")
