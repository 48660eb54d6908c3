"""The commands of `structsam-export` that study merging instead of exporting it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    Align,
    Images,
    Json,
    Layers,
    Methods,
    Model,
    Options,
    Proportional,
    Rate,
    WeightOptions,
    make_terminal,
    parse_rates,
    rate_list,
)
from structsam_export.cli.merging_options import CountedMerging
from structsam_export.cli.option_groups import takes_groups


@takes_groups
def count_flops(
    context: typer.Context,
    *,
    model: Model = "vit_b",
    merging: CountedMerging,
    json_only: Json = False,
) -> None:
    """Multiply-adds of the encoder per block and in all, merging included."""
    terminal = make_terminal()
    from structsam.flops import encoder_flops, unmerged_flops
    from structsam.models import model_spec
    from structsam_export.bench.flops_table import compare_methods, flops_table, methods_table

    spec, placement = model_spec(model), merging.placement
    title = (
        f"{model}, {merging.method}, rate {merging.rate}, layers {merging.layers}, "
        f"placement {placement}"
    )
    if merging.method == "all":
        if merging.option:
            raise UserError("--option belongs to one method. Name it with --method, not all")
        compared = compare_methods(spec, placement, **merging.choice(context))
        if json_only:
            facts = {n: c if isinstance(c, str) else c.to_dict() for n, c in compared.items()}
            print(json.dumps(facts))
        else:
            terminal.table(methods_table(title, compared))
        return
    config = merging.config(context, model)
    if merging.schedule is not None:
        placement = config.placement
        title = f"{model}, {config.method}, rates of {merging.schedule}, placement {placement}"
    counted = encoder_flops(spec, config, placement)
    if json_only:
        print(json.dumps(counted.to_dict()))
    else:
        terminal.table(flops_table(title, counted, unmerged_flops(spec)))


@takes_groups
def measure_spectrum(
    *,
    model: Model,
    methods: Methods = "all",
    rates: Annotated[str, typer.Option(help="Rates to compare, such as 0.25,0.5.")] = "0.25,0.5",
    image: Images = None,
    layers: Layers = "all",
    source: WeightOptions,
    graph: Annotated[str, typer.Option(help="affinity, or distance as in PiToMe.")] = "affinity",
    out: Annotated[Path, typer.Option(help="Folder for table and plot.")] = Path("spectrum"),
    json_only: Json = False,
) -> None:
    """How far merging moves the spectrum of the token graph, by layer and method.

    The graph joins tokens by cosine: methods that match tokens by cosine move it least, and
    StructSAM, which compares none, moves it more. docs/fidelity.md says what holds instead.
    """
    terminal = make_terminal()
    from structsam.config import parse_layers
    from structsam_export.inspect import spectrum
    from structsam_export.inspect.spectrum_report import spectrum_table

    given = source.of(model, terminal)
    merging = spectrum.spectrum_choices(given.spec, methods, rate_list(rates), parse_layers(layers))
    report = spectrum.run(given, merging, image or (), graph, out, terminal.say)
    if json_only:
        print(json.dumps(report.to_dict()))
        return
    terminal.table(spectrum_table(report))
    for file in report.files:
        terminal.print(str(file))


@takes_groups
def inspect(
    *,
    model: Model,
    image: Annotated[Path | None, typer.Option(help="Photo; one of ours by default.")] = None,
    methods: Methods = "all",
    rate: Rate = "0.5",
    block: Annotated[str, typer.Option(help="Block to draw; several: 2,5,8; or all.")] = "8",
    layers: Layers = "all",
    source: WeightOptions,
    option: Options = None,
    align: Align = 1,
    proportional: Proportional = False,
    depth_method: Annotated[
        str | None, typer.Option(help="Method of the sheet over depth; the first by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("inspect"),
    json_only: Json = False,
) -> None:
    """Pictures of what merges where: per method, across methods, and across depth."""
    terminal = make_terminal()
    from structsam.config import parse_layers
    from structsam.methods import choose_methods
    from structsam_export.inspect.merging import inspect_merging
    from structsam_export.inspect.report import inspection_table
    from structsam_export.merging_choices import choices

    given = source.of(model, terminal)
    merging = choices(
        given.spec,
        choose_methods(methods),
        [parse_rates(rate)],
        [parse_layers(layers)],
        options=option or (),
        align=align,
        proportional=proportional,
    )
    result = inspect_merging(given, merging, image, block, depth_method, out, terminal.say)
    if json_only:
        print(json.dumps(result.to_dict()))
        return
    terminal.table(inspection_table(result))
    for file in result.files:
        terminal.print(str(file))
