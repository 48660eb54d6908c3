"""`structsam-export tune`: rates per block from the user's own photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    Checkpoint,
    Json,
    Method,
    Options,
    Seed,
    Threads,
    Weights,
    make_terminal,
    parse_rates,
    random_note,
)


def tune(
    images: Annotated[
        list[Path] | None, typer.Option(help="Photo, or folder of photos; repeat it.")
    ] = None,
    model: Annotated[str, typer.Option(help="vit_b, vit_l, vit_h, medsam or vit_t.")] = "vit_t",
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    budget: Annotated[
        float, typer.Option(help="The uniform rate to beat: its cost, or loss.")
    ] = 0.5,
    method: Method = "structsam",
    option: Options = None,
    placement: Annotated[
        list[str] | None,
        typer.Option(help="attention (default) or block; repeat it: the better one is chosen."),
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Candidates, such as 0,0.25,0.5,0.75.")] = None,
    cost: Annotated[str, typer.Option(help="gmac, or latency in PyTorch here.")] = "gmac",
    least: Annotated[
        str, typer.Option(help="loss, at the budget's cost; or cost, at the budget's loss.")
    ] = "loss",
    max_loss: Annotated[
        float | None,
        typer.Option(help="With --least cost: this loss instead of that of the budget's rate."),
    ] = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for the schedule and the plot.")] = Path("tune"),
    json_only: Json = False,
) -> None:
    """Which rate at which block: less loss than one rate everywhere at its cost, or less cost."""
    terminal = make_terminal()
    if not images:
        raise UserError("--images is missing: give a folder of photos like those of your task")
    if weights == "random":
        terminal.warn(random_note())
    from structsam.methods import find_method
    from structsam.methods.options import parse_options
    from structsam_export.plot_style import require_matplotlib
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings
    from structsam_export.tune.report import facts, save_report, tune_table
    from structsam_export.tune.tune import RATES
    from structsam_export.tune.tune import tune as run

    require_matplotlib()
    use_fast_settings()
    parsed = RATES if rates is None else parse_rates(rates)
    if threads:
        import torch

        torch.set_num_threads(threads)
    try:
        report = run(
            model,
            images,
            budget,
            method,
            placement or ("attention",),
            dict(parse_options(find_method(method), option or ())),
            parsed if isinstance(parsed, tuple) else (parsed,),
            cost,
            least,
            max_loss,
            checkpoint,
            weights,
            seed,
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
    terminal.print(f"use it: structsam-export export --model {model} --schedule {report.files[0]}")
