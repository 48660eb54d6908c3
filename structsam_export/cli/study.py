"""The commands of `structsam-export` that study merging instead of exporting it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    Align,
    Devices,
    Images,
    Json,
    Layers,
    Methods,
    Model,
    Options,
    Proportional,
    Rate,
    SizeOptions,
    WeightOptions,
    make_terminal,
    parse_rates,
    rate_list,
    refuse_beside,
)
from structsam_export.cli.merging_options import CountedMerging
from structsam_export.cli.option_groups import option_names, takes_groups
from structsam_export.cli.photo_paths import from_home

if TYPE_CHECKING:
    from structsam.flops_counts import EncoderFlops
    from structsam_export.bench.roofline import EncoderBound
    from structsam_export.cli.terminal import Terminal


@takes_groups
def count_flops(
    context: typer.Context,
    *,
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Count this one's encoder.")
    ] = None,
    model: Model = "vit_b",
    merging: CountedMerging,
    size: SizeOptions,
    device: Devices = None,
    json_only: Json = False,
) -> None:
    """Multiply-adds of the encoder per block, merging included; with --device least times."""
    terminal = make_terminal()
    from structsam.flops import THESIS, encoder_flops, unmerged_flops
    from structsam_export.bench.flops_table import compare_methods, methods_table
    from structsam_export.bench.roofline import bound_of_bundle, encoder_bound, merging_of_bundle
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.devices import find_device

    devices = [find_device(name) for name in device or ()]
    if bundle is not None:
        groups = (*option_names(CountedMerging), *option_names(SizeOptions))
        refuse_beside(context, "a bundle", ("model", *groups))
        opened = open_bundle(bundle, verify=False)
        spec, config = merging_of_bundle(opened)
        bounds = [bound_of_bundle(opened, each) for each in devices]
        _show_counts(
            terminal,
            opened.name,
            encoder_flops(spec, config),
            unmerged_flops(spec),
            bounds,
            json_only,
        )
        return
    spec, placement = size.spec(model), merging.placement
    title = (
        f"{spec.label}, {merging.method}, rate {merging.rate}, layers {merging.layers}, "
        f"placement {placement}"
    )
    if devices and (merging.method == "all" or placement == THESIS):
        raise UserError("--device is for one method as it runs: no --method all, no thesis")
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
    config = merging.config(context, spec)
    if merging.recipe is not None:
        placement = config.placement
        title = f"{spec.label}, {config.method}, rates of {merging.recipe}, placement {placement}"
    counted = encoder_flops(spec, config, placement)
    bounds = [encoder_bound(spec, replace(config, placement=placement), each) for each in devices]
    _show_counts(terminal, title, counted, unmerged_flops(spec), bounds, json_only)


def _show_counts(
    terminal: Terminal,
    title: str,
    counted: EncoderFlops,
    unmerged: EncoderFlops,
    bounds: Sequence[EncoderBound],
    json_only: bool,
) -> None:
    from structsam_export.bench.flops_table import flops_table
    from structsam_export.bench.roofline import bound_notes, bound_table

    if json_only:
        found = {"bounds": [bound.to_dict() for bound in bounds]} if bounds else {}
        print(json.dumps({**counted.to_dict(), **found}))
    elif bounds:
        for bound in bounds:
            terminal.table(bound_table(title, bound))
        for line in bound_notes(bounds):
            terminal.print(line)
    else:
        terminal.table(flops_table(title, counted, unmerged))


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

    given = source.of(source.find(model, terminal), terminal)
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
    image: Annotated[
        Path | None, typer.Option(help="Photo; one of ours by default.", callback=from_home)
    ] = None,
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

    given = source.of(source.find(model, terminal), terminal)
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
