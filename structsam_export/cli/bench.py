"""The command `structsam-export bench`: what bundles, or merged encoders of a model, cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.cli.arguments import (
    Calibrate,
    Checkpoint,
    Devices,
    Json,
    Methods,
    Precision,
    SizeOptions,
    Threads,
    make_terminal,
    rate_list,
    refuse_beside,
)
from structsam_export.cli.option_groups import option_names, takes_groups

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec
    from structsam_export.bench.benchmark import Procedure
    from structsam_export.bench.report import BenchReport
    from structsam_export.bundle.folder import Bundle
    from structsam_export.cli.terminal import Terminal


@dataclass(frozen=True)
class Encoders(SizeOptions):
    """Merged encoders that are made here, with random weights: every combination."""

    methods: Methods = "structsam"
    rates: Annotated[str, typer.Option(help="With --model, such as 0.25,0.5,0.7.")] = "0.5"
    placement: Annotated[
        list[str] | None, typer.Option(help="With --model: attention, block or stage; repeat it.")
    ] = None
    layers: Annotated[
        list[str] | None, typer.Option(help="With --model: all, global, window or 7,8,9; repeat.")
    ] = None
    attention: Annotated[
        list[str] | None,
        typer.Option(help="With --model: auto (of the first backend), or a form; repeat it."),
    ] = None
    precision: Precision = "fp16"
    calibrate: Calibrate = None
    batch: Annotated[int, typer.Option(min=1, help="With --model: images per call.")] = 1

    def make(self, model: str, backend: str, folder: Path, terminal: Terminal) -> list[Bundle]:
        """Return their bundles in `folder`, made for `backend`; what cannot be done is told."""
        from structsam_export.bench.encoders import make_merged
        from structsam_export.graph.attention_choice import attention_for
        from structsam_export.graph.precisions import require_precision
        from structsam_export.predict.calibration_photos import CalibrationPhotos

        require_precision(self.precision, self.calibrate)
        photos = None
        if self.calibrate is not None:
            photos = CalibrationPhotos.of(self.calibrate, terminal.say)
        specs = self.specs(model)
        asked = [self._configs(spec, terminal) for spec in specs]
        if not any(asked):
            raise UserError("nothing merges at rate 0. Use --rates 0.5 and --baselines beside it")
        fitted = [[attention_for(c, backend, self.precision) for c in own] for own in asked]
        for reason in dict.fromkeys(why for own in fitted for _, why in own if why):
            terminal.say(reason)
        made: list[Bundle] = []
        for spec, told in zip(specs, fitted, strict=True):
            configs = [config for config, _ in told]
            made += make_merged(
                spec, configs, self.precision, self.batch, folder, terminal.say, photos
            )
        return made

    def _configs(self, spec: ModelSpec, terminal: Terminal) -> list[MergeConfig]:
        """Return the mergings at one input size; rate 0 is one where --baselines has none."""
        from structsam.config import MergeConfig
        from structsam.merging.attention_forms import AUTO
        from structsam.methods import choose_methods
        from structsam_export.merging_choices import merge_configs

        rates, attentions = rate_list(self.rates), self.attention or [AUTO]
        configs, left_out = merge_configs(
            spec,
            choose_methods(self.methods),
            rates,
            self.layers or ["all"],
            self.placement or ["attention"],
            attentions=attentions,
        )
        for entry in left_out:
            terminal.warn(f"{entry['name']} is left out: {entry['reason']}")
        if 0.0 in rates and spec.size_suffix:
            return [*(MergeConfig(rate=0.0, attention=form) for form in attentions), *configs]
        return configs


@dataclass(frozen=True)
class Measuring:
    """How every row is measured; see `structsam_export.bench.benchmark.Procedure`."""

    runs: Annotated[int, typer.Option(min=1, help="Measured runs per row.")] = 5
    warmup: Annotated[int, typer.Option(min=0, help="Runs before measuring.")] = 2
    threads: Threads = None
    checkpoint: Checkpoint = None
    require: Annotated[list[str] | None, typer.Option(help="Backend that must run; repeat it.")] = (
        None
    )
    one_by_one: Annotated[
        bool, typer.Option(help="One row at a time instead of in turns: for little memory.")
    ] = False

    def procedure(self) -> Procedure:
        """Return it as `bench` takes it."""
        from structsam_export.bench.benchmark import Procedure
        from structsam_export.runtimes import RunOptions

        options = RunOptions(self.threads, self.checkpoint)
        require = tuple(self.require or ())
        return Procedure(self.runs, self.warmup, not self.one_by_one, require, options)


@takes_groups
def bench(
    context: typer.Context,
    *,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Measure these.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure encoders of this model, made with random weights.")
    ] = None,
    encoders: Encoders,
    backend: Annotated[list[str] | None, typer.Option(help="Backend; repeat it.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also measure stock SAM and our rate 0 of the same model.")
    ] = False,
    measuring: Measuring,
    device: Devices = None,
    fidelity: Annotated[
        list[Path] | None, typer.Option(help="Results of `evaluate` of the same model; repeat it.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the encoders made here; asked again: reused.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.md and bench.png.")
    ] = None,
    json_only: Json = False,
) -> None:
    """Implied cost, then measured latency and memory; the last line is JSON."""
    terminal = make_terminal()
    if bool(bundles) == bool(model):
        raise UserError("give bundles to measure, or --model for encoders that are made here")
    if bundles:
        refuse_beside(context, "a bundle", option_names(Encoders))
    elif measuring.checkpoint:
        raise UserError("--model measures random weights. Leave --checkpoint out, or export first")
    from structsam_export.bench import benchmark
    from structsam_export.bench.fidelity import add_fidelity, read_fidelity
    from structsam_export.bench.report import render_table
    from structsam_export.bench.roofline import bound_notes, bound_of_bundle, bound_table
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.devices import find_device
    from structsam_export.plot_style import require_matplotlib
    from structsam_export.runtimes import find_backend

    backends = tuple(backend or ["auto"])
    for name in {*backends, *(measuring.require or ())} - {"auto"}:
        find_backend(name)  # a wrong name is told before the work
    devices = [find_device(name) for name in device or ()]
    summaries = read_fidelity(fidelity or ())  # so is a wrong path
    if out is not None:
        require_matplotlib()
        atomic.require_writable(out)
    scratch = nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="structsam-bench-")
    first = find_backend(backend[0] if backend else "auto").name
    with scratch as folder:
        if model is None:
            opened = [open_bundle(path) for path in bundles or ()]
        else:
            opened = encoders.make(model, first, Path(folder), terminal)
        report = benchmark.bench(
            opened,
            backends,
            baselines,
            measuring.procedure(),
            Path(folder),
            terminal.say,
        )
        bounds = [(b.name, bound_of_bundle(b, each)) for b in opened for each in devices]
    add_fidelity(report, opened, summaries)
    report.bounds = [{"bundle": name, **bound.to_dict()} for name, bound in bounds]
    if not json_only:
        terminal.table(render_table(report))
        for name, bound in bounds:
            terminal.table(bound_table(name, bound))
        for line in bound_notes([bound for _, bound in bounds]) if bounds else ():
            terminal.print(line)
    if out is not None:
        _save(report, out, terminal.say if json_only else terminal.print)
    print(json.dumps(report.to_dict()))
    raise typer.Exit(0 if report else 2)


def _save(report: BenchReport, out: Path, tell: Callable[[str], None]) -> None:
    from structsam_export.bench.fidelity import draw_benchmark
    from structsam_export.bench.report import markdown

    atomic.write_text(out / "bench.json", json.dumps(report.to_dict(), indent=1) + "\n")
    atomic.write_text(out / "bench.md", markdown(report))
    names = ["bench.json", "bench.md"]
    if picture := draw_benchmark(report):
        atomic.write_bytes(out / "bench.png", picture)
        names.append("bench.png")
    tell(f"{out}: {', '.join(names)}")
