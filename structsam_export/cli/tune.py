"""`structsam-export tune`: the cheapest encoder whose masks are good enough."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    BackendName,
    Json,
    Methods,
    Options,
    Threads,
    WeightOptions,
    make_terminal,
    rate_list,
    refuse_beside,
)
from structsam_export.cli.option_groups import takes_groups
from structsam_export.cli.photo_paths import all_from_home

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec
    from structsam_export.tune.search import Limit
    from structsam_export.tune.tune import Levers


@dataclass(frozen=True)
class LeverOptions:
    """What may be moved; see `structsam_export.tune.tune.Levers`."""

    methods: Methods = "structsam,tomesd"
    option: Options = None
    sizes: Annotated[
        str | None, typer.Option(help="Smaller inputs to try; 896,768,640,512 by default.")
    ] = None
    rates: Annotated[str | None, typer.Option(help="To try, 0.25,0.5,0.7 by default.")] = None
    placement: Annotated[
        list[str] | None,
        typer.Option(help="To try: attention, stage (the default), block."),
    ] = None
    precision: Annotated[
        str, typer.Option(help="auto, fp32 (CPUs) or fp16 (GPUs); INT8 is tried beside it.")
    ] = "auto"
    int8: Annotated[bool, typer.Option("--int8/--no-int8", help="Try INT8 as well.")] = True
    per_block: Annotated[
        bool, typer.Option("--per-block/--no-per-block", help="Try a rate of its own per block.")
    ] = True

    def base(self) -> MergeConfig:
        """Return the first method, which rates per block are tried with, and its options."""
        from structsam.config import MergeConfig
        from structsam.methods import choose_methods, find_method
        from structsam.methods.options import parse_options

        first = choose_methods(self.methods)[0]
        options = parse_options(find_method(first), self.option or ())
        return MergeConfig.of(method=first, rate=0.0, options=options)

    def levers(self, backend: str) -> Levers:
        """Return what is tried for a backend; raises `UserError` for a value that cannot be."""
        from structsam.methods import choose_methods
        from structsam.models.image_size import read_image_size
        from structsam_export.tune.points import INT8_OF, PLACEMENTS, RATES, USUAL_PLACEMENTS
        from structsam_export.tune.tune import Levers

        precision = self.precision
        if precision == "auto":
            on_cpu = backend in ("onnxruntime", "openvino", "openvino:f32", "openvino:bf16")
            precision = "fp32" if on_cpu else "fp16"
        if precision not in INT8_OF:
            raise UserError(f"unknown precision {precision!r}. Use auto, fp32 or fp16")
        placements = tuple(dict.fromkeys(self.placement or USUAL_PLACEMENTS))
        for placement in placements:
            if placement not in PLACEMENTS:
                raise UserError(
                    f"unknown placement {placement!r}. Choose from: {', '.join(PLACEMENTS)}"
                )
        sizes = self.sizes and tuple(map(read_image_size, self.sizes.split(",")))
        rates = RATES if self.rates is None else rate_list(self.rates)
        return Levers(
            sizes or None,
            placements,
            rates,
            precision,
            self.int8,
            self.per_block,
            tuple(choose_methods(self.methods)[1:]),
        )


@dataclass(frozen=True)
class LimitOptions:
    """What is sought; with neither, the knee of the frontier."""

    max_latency: Annotated[
        str | None, typer.Option(help="Of the encoder, such as 0.8s or 800ms: the least loss.")
    ] = None
    max_loss: Annotated[
        float | None, typer.Option(help="1 - mask IoU, such as 0.02: the fastest.")
    ] = None

    def limit(self) -> Limit:
        """Return it as `tune` takes it."""
        from structsam_export.tune.search import Limit

        latency = None if self.max_latency is None else read_milliseconds(self.max_latency)
        return Limit(latency, self.max_loss)


def read_milliseconds(text: str) -> float:
    """Read a time as typed: `0.8s`, `800ms`, or seconds without a unit.

    Raises:
        UserError: not a time.

    >>> read_milliseconds("0.8s"), read_milliseconds("800 ms"), read_milliseconds("0.8")
    (800.0, 800.0, 800.0)
    """
    words = text.strip().lower()
    unit = 1.0 if words.endswith("ms") else 1e3
    try:
        return float(words.removesuffix("ms").removesuffix("s")) * unit
    except ValueError:
        raise UserError(f"latency {text!r} is no time. Use one such as 0.8s or 800ms") from None


def require_size(side: int, model: ModelSpec) -> None:
    """Raise a `UserError` for an input size that the model cannot have."""
    from structsam.models.image_size import resized

    try:
        resized(model, side)
    except UserError as error:
        raise UserError(str(error).replace("`image_size=", "`sizes=")) from None


@takes_groups
def tune(
    context: typer.Context,
    *,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Photo, or folder of photos; repeat it.", callback=all_from_home),
    ] = None,
    model: Annotated[str, typer.Option(help="See `list`; a .toml file; or auto.")] = "vit_t",
    source: WeightOptions,
    lever: LeverOptions,
    limit: LimitOptions,
    backend: BackendName = "auto",
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for recipe, chart and results.")] = Path("tune"),
    json_only: Json = False,
) -> None:
    """Input size, merging and INT8 together: the frontier of latency and loss on your photos."""
    terminal = make_terminal()
    if not images:
        raise UserError("--images is missing: give a folder of photos like those of your task")
    refuse_beside(context, "the search", ("image_size", "embedding"))
    from structsam.models import MODELS
    from structsam_export.plot_style import require_matplotlib
    from structsam_export.runtimes import RunOptions, find_backend
    from structsam_export.tune.report import facts, frontier_table, save_report, verdict
    from structsam_export.tune.tune import find_photos
    from structsam_export.tune.tune import tune as search

    require_matplotlib()
    sought, base, runtime = limit.limit(), lever.base(), find_backend(backend)
    levers = lever.levers(runtime.name)
    found = source.find(model, terminal)
    for side in levers.sizes or ():
        require_size(side, found)
    given = source.of(found, terminal)
    given.require()
    find_photos(images)
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings

    use_fast_settings()  # loads torch: only once there is nothing left to refuse
    if threads:
        import torch

        torch.set_num_threads(threads)
    try:
        report = search(
            given,
            images,
            base,
            levers,
            sought,
            runtime.name,
            RunOptions(threads=threads),
            out,
            terminal.counted,
            terminal.say,
        )
    finally:
        terminal.close()
    report = save_report(report, out)
    if json_only:
        print(json.dumps(facts(report)))
        return
    terminal.table(frontier_table(report))
    terminal.print(verdict(report))
    for file in report.files:
        terminal.print(str(file))
    more = " --calibrate DIR" if report.recipe.lacks_photos else ""
    named = found.name if model == "auto" and found.name in MODELS else model
    used = f"--model {named} --recipe {report.files[0]}{more}"
    terminal.print(f"use it: structsam-export export {used}")
