"""`structsam-export tune`: rates per block from the user's own photos."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    Json,
    Method,
    Options,
    Threads,
    WeightOptions,
    make_terminal,
    rate_list,
)
from structsam_export.cli.option_groups import takes_groups

if TYPE_CHECKING:
    from structsam.config import MergeConfig


@dataclass(frozen=True)
class UniformMerging:
    """One rate everywhere, in every placement that may be chosen: what a schedule has to beat."""

    budget: Annotated[float, typer.Option(help="The uniform rate to beat: its cost, or loss.")] = (
        0.5
    )
    method: Method = "structsam"
    option: Options = None
    placement: Annotated[
        list[str] | None,
        typer.Option(help="attention (default) or block; repeat it: the better one is chosen."),
    ] = None

    def configs(self) -> list[MergeConfig]:
        """Return one configuration for every placement."""
        from structsam.config import MergeConfig
        from structsam.methods import find_method
        from structsam.methods.options import parse_options

        options = parse_options(find_method(self.method), self.option or ())
        return [
            MergeConfig(
                method=self.method,
                rate=self.budget,
                options=tuple(dict(options).items()),
                placement=placement,
            )
            for placement in dict.fromkeys(self.placement or ("attention",))
        ]


@dataclass(frozen=True)
class GoalOptions:
    """What is sought; see `structsam_export.tune.tune.Goal`."""

    cost: Annotated[str, typer.Option(help="gmac, or latency in PyTorch here.")] = "gmac"
    least: Annotated[
        str, typer.Option(help="loss, at the budget's cost; or cost, at the budget's loss.")
    ] = "loss"
    max_loss: Annotated[
        float | None,
        typer.Option(help="With --least cost: this loss instead of that of the budget's rate."),
    ] = None


@takes_groups
def tune(
    *,
    images: Annotated[
        list[Path] | None, typer.Option(help="Photo, or folder of photos; repeat it.")
    ] = None,
    model: Annotated[str, typer.Option(help="vit_b, vit_l, vit_h, medsam or vit_t.")] = "vit_t",
    source: WeightOptions,
    uniform: UniformMerging,
    rates: Annotated[str | None, typer.Option(help="Candidates, such as 0,0.25,0.5,0.75.")] = None,
    goal: GoalOptions,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for the schedule and the plot.")] = Path("tune"),
    json_only: Json = False,
) -> None:
    """Which rate at which block: less loss than one rate everywhere at its cost, or less cost."""
    terminal = make_terminal()
    if not images:
        raise UserError("--images is missing: give a folder of photos like those of your task")
    from structsam_export.plot_style import require_matplotlib
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings
    from structsam_export.tune import tune as search
    from structsam_export.tune.report import facts, save_report, tune_table

    require_matplotlib()
    candidates = search.RATES if rates is None else rate_list(rates)
    chosen, merging = search.Goal(**asdict(goal)), uniform.configs()
    given = source.of(model, terminal)
    given.require()
    search.find_photos(images)
    use_fast_settings()  # loads torch: only once there is nothing left to refuse
    if threads:
        import torch

        torch.set_num_threads(threads)
    try:
        report = search.tune(
            given,
            images,
            merging,
            candidates,
            chosen,
            out,
            terminal.counted,
            terminal.warn,
        )
    finally:
        terminal.close()
    report = save_report(report, out)
    if json_only:
        print(json.dumps(facts(report)))
        return
    terminal.table(tune_table(report))
    for file in report.files:
        terminal.print(str(file))
    used = f"--model {model}{source.typed} --schedule {report.files[0]}"
    terminal.print(f"use it: structsam-export export {used}")
