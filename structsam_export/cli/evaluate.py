"""The commands of `structsam-export` that measure what merging costs: `evaluate` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam_export.cli.arguments import (
    BackendName,
    Json,
    Threads,
    WeightOptions,
    make_terminal,
    refuse_beside,
)
from structsam_export.cli.evaluation_options import Compared, Data, Scoring
from structsam_export.cli.option_groups import option_names, takes_groups

if TYPE_CHECKING:
    from structsam_export.cli.terminal import Terminal


#: What a bundle decides.
_OF_A_MODEL = (
    "model",
    *(name for name in option_names(WeightOptions) if name != "seed"),
    *option_names(Compared),
    "precision",
)


@takes_groups
def evaluate(
    context: typer.Context,
    *,
    bundle: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Instead of --model.")
    ] = None,
    data: Data,
    model: Annotated[str, typer.Option(help="See `list`; a .toml file; or auto.")] = "vit_t",
    source: WeightOptions,
    compared: Compared,
    scoring: Scoring,
    precision: Annotated[str, typer.Option(help="fp32 or fp16, of --model.")] = "fp32",
    backend: BackendName = "auto",
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode and score.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first problem.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    json_only: Json = False,
) -> None:
    """Quality on a dataset, merged beside unmerged; asked again, it goes on or adds rows.

    --image-size may be a list, such as 1024,768: the first run without merging is the baseline.
    """
    terminal = make_terminal()
    if bundle:
        refuse_beside(context, "a bundle", _OF_A_MODEL)
    sources = [] if bundle else source.of_sizes(source.find(model, terminal), terminal)
    setting = scoring.setting(data, source.seed, workers=workers, strict=strict)
    from structsam_export.evaluate.runs import (
        LatestModel,
        bundle_runs,
        evaluate_runs,
        model_runs,
    )

    left_out: list[dict[str, str]] = []
    if bundle:
        facts, runs = bundle_runs(bundle, backend, threads)
    else:
        runs, models = [], LatestModel()
        for weights in sources:
            configs, refused = compared.configs(weights.spec)
            facts, of_size = model_runs(weights, configs, precision, threads, models)
            runs += of_size
            left_out += [entry for entry in refused if entry not in left_out]
    for entry in left_out:
        terminal.warn(f"{entry['name']} is left out: {entry['reason']}")
    try:
        evaluate_runs(facts, runs, setting, out, left_out, terminal.counted)
    finally:
        terminal.close()
    _show_summary(terminal, out, json_only)


def _show_summary(terminal: Terminal, out: Path, json_only: bool) -> None:
    from structsam.evaluation.summary import summarise
    from structsam_export.bundle.atomic import write_text
    from structsam_export.evaluate.table import summary_table

    summary = summarise(out)
    text = json.dumps(summary.to_dict(), indent=1)
    write_text(out / "summary.json", text + "\n")
    if json_only:
        print(json.dumps(summary.to_dict()))
        return
    terminal.table(summary_table(summary))
    for line in summary.problem_lines():
        terminal.warn(line)
    terminal.print(f"{out}: rows per mask in rows/, tables with `structsam-export report {out}`")


def report_results(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="From `evaluate`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.md and report.html; RESULTS-report by default."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    gallery: Annotated[int, typer.Option(min=0, help="Worst cases to show.")] = 12,
    json_only: Json = False,
) -> None:
    """Tables with intervals, curves, and pictures of the worst cases, as Markdown and HTML."""
    terminal = make_terminal()
    from structsam_export.evaluate.report import write_report

    files = [str(path) for path in write_report(results, out, title=title, gallery=gallery)]
    if json_only:
        print(json.dumps({"files": files}))
        return
    for file in files:
        terminal.print(file)
