"""The command `structsam-export bench`: what bundles, or merged encoders of a model, cost."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.cli.arguments import (
    Checkpoint,
    Methods,
    Reuse,
    Threads,
    make_terminal,
    parse_rates,
    refuse_beside,
)

if TYPE_CHECKING:
    from structsam_export.bench.benchmark import BenchReport
    from structsam_export.bundle.folder import Bundle
    from structsam_export.cli.terminal import Terminal


#: Only of encoders that are made here.
_OF_A_MODEL = ("methods", "rates", "placement", "layers", "reuse", "precision", "batch")


def bench(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Measure these.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure encoders of this model, made with random weights.")
    ] = None,
    methods: Methods = "structsam",
    rates: Annotated[str, typer.Option(help="With --model, such as 0.25,0.5,0.7.")] = "0.5",
    placement: Annotated[
        list[str] | None, typer.Option(help="With --model: attention, block or stage; repeat it.")
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="With --model: all, global, window or 7,8,9; repeat.")
    ] = None,
    reuse: Reuse = 1,
    precision: Annotated[str, typer.Option(help="With --model: fp16 or fp32.")] = "fp16",
    batch: Annotated[int, typer.Option(min=1, help="With --model: images per call.")] = 1,
    backend: Annotated[list[str] | None, typer.Option(help="Backend; repeat it.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also measure stock SAM and our rate 0 of the same model.")
    ] = False,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs per row.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before measuring.")] = 2,
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    require: Annotated[
        list[str] | None, typer.Option(help="Backend that must run; repeat it.")
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option(help="One row at a time instead of in turns: for little memory.")
    ] = False,
    fidelity: Annotated[
        list[Path] | None, typer.Option(help="Results of `evaluate` of the same model; repeat it.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the encoders made here; asked again: reused.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.md and bench.png.")
    ] = None,
) -> None:
    """Implied cost, then measured latency and memory; the last line is JSON."""
    terminal = make_terminal()
    if bool(bundles) == bool(model):
        raise UserError("give bundles to measure, or --model for encoders that are made here")
    if bundles:
        refuse_beside(context, "a bundle", _OF_A_MODEL)
    elif checkpoint:
        raise UserError("--model measures random weights. Leave --checkpoint out, or export first")
    from structsam_export.bench.benchmark import bench as run
    from structsam_export.bench.benchmark import render_table
    from structsam_export.bench.fidelity import add_fidelity, read_fidelity
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.plot_style import require_matplotlib

    summaries = read_fidelity(fidelity or ())  # a wrong path is told before the work
    if out is not None:
        require_matplotlib()
        atomic.write_text(out / ".bench", "")  # so is a folder that cannot be written
        (out / ".bench").unlink()
    scratch = nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="structsam-bench-")
    with scratch as folder:
        if model is None:
            opened = [open_bundle(path) for path in bundles or ()]
        else:
            opened = _made_here(
                terminal, model, methods, rates, placement, layers, reuse, precision, batch,
                Path(folder),
            )  # fmt: skip
        report = run(
            opened,
            backends=tuple(backend or ["auto"]),
            baselines=baselines,
            threads=threads,
            runs=runs,
            warmup=warmup,
            checkpoint=checkpoint,
            interleave=not one_by_one,
            require=tuple(require or ()),
            keep=Path(folder),
            say=terminal.say,
        )
    add_fidelity(report, opened, summaries)
    terminal.table(render_table(report))
    if out is not None:
        _save(report, out, terminal)
    print(json.dumps(report.to_dict()))
    raise typer.Exit(0 if report else 2)


def _made_here(
    terminal: Terminal,
    model: str,
    methods: str,
    rates: str,
    placement: list[str] | None,
    layers: list[str] | None,
    reuse: int,
    precision: str,
    batch: int,
    folder: Path,
) -> list[Bundle]:
    from structsam.methods import choose_methods
    from structsam.models import model_spec
    from structsam_export.bench.encoders import make_merged
    from structsam_export.graph.mixed_precision import PRECISIONS
    from structsam_export.merging_choices import merge_configs

    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}. Use one of: {', '.join(PRECISIONS)}")
    parsed = parse_rates(rates)
    configs, left_out = merge_configs(
        model_spec(model),
        choose_methods(methods),
        parsed if isinstance(parsed, tuple) else (parsed,),
        layers or ["all"],
        placement or ["attention"],
        reuse=reuse,
    )
    for entry in left_out:
        terminal.warn(f"{entry['name']} is left out: {entry['reason']}")
    if not configs:
        raise UserError("nothing merges at rate 0. Use --rates 0.5 and --baselines beside it")
    return list(make_merged(model, configs, precision, batch, folder, terminal.say))


def _save(report: BenchReport, out: Path, terminal: Terminal) -> None:
    from structsam_export.bench.plot import draw_benchmark
    from structsam_export.bench.report import markdown

    atomic.write_text(out / "bench.json", json.dumps(report.to_dict(), indent=1) + "\n")
    atomic.write_text(out / "bench.md", markdown(report))
    names = ["bench.json", "bench.md"]
    if picture := draw_benchmark(report):
        atomic.write_bytes(out / "bench.png", picture)
        names.append("bench.png")
    terminal.print(f"{out}: {', '.join(names)}")
