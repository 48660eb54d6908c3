"""The commands that make bundles: `export`, `build`, `lint` and `download`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from structsam_export.cli.arguments import (
    BackendName,
    BundlePath,
    Calibrate,
    Images,
    Json,
    Model,
    Precision,
    Targets,
    WeightOptions,
    make_terminal,
    random_note,
    refuse_beside,
)
from structsam_export.cli.merging_options import MergingOptions
from structsam_export.cli.option_groups import takes_groups
from structsam_export.tune.recipe import read_recipe


@takes_groups
def export_model(
    context: typer.Context,
    *,
    model: Model,
    merging: MergingOptions,
    source: WeightOptions,
    precision: Precision = "fp16",
    calibrate: Calibrate = None,
    plan_outputs: Annotated[
        bool,
        typer.Option("--plan-outputs/--no-plan-outputs", help="Slots are outputs; for `check`."),
    ] = True,
    backend: BackendName = "auto",
    target: Targets = None,
    image: Images = None,
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")] = Path("engines"),
    name: Annotated[str | None, typer.Option(help="Bundle name; made up by default.")] = None,
    force: Annotated[bool, typer.Option(help="Let random weights replace real ones.")] = False,
    json_only: Json = False,
) -> None:
    """Checkpoint -> merged encoder -> ONNX -> lint -> engines -> parity report."""
    terminal = make_terminal()
    found = source.find(model, terminal)
    if merging.recipe is not None:
        refuse_beside(context, "--recipe", ("precision", "image_size", "embedding"))
        recipe = read_recipe(merging.recipe)
        precision, side = recipe.precision, recipe.image_size
        calibrate = calibrate or (Path(recipe.calibrate) if recipe.calibrate else None)
        source = replace(source, image_size=None if side is None else str(side))
    config = merging.config(context, source.spec(found))
    weights = source.of(found, terminal)
    from structsam_export.pipeline import export
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings

    def begin(title: str) -> None:
        terminal.say(title)
        use_fast_settings()  # loads torch: only once there is nothing left to refuse

    try:
        result = export(
            found,
            config,
            checkpoint=weights.checkpoint,
            weights=weights.weights,
            seed=weights.seed,
            image_size=weights.image_size,
            embedding=weights.embedding,
            precision=precision,
            calibrate=calibrate,
            plan_outputs=plan_outputs,
            backend=backend,
            targets=target or (),
            images=image or (),
            out=out,
            name=name,
            force=force,
            say=begin,
            build_progress=terminal.build_event,
            count=terminal.counted,
        )
    finally:
        terminal.close()
    bundle, report = result, result.parity
    if json_only:
        facts = {
            "bundle": str(bundle.path),
            "manifest": bundle.manifest,
            "parity": report.to_dict(),
            "seconds": result.seconds,
            "engine_notes": result.engine_notes,
        }
        print(json.dumps(facts))
    else:
        from structsam_export.bundle.manifest import PARITY_STEM
        from structsam_export.cli.terminal import bundle_table, parity_table

        terminal.table(bundle_table(bundle))
        for note in result.engine_notes:
            terminal.print(f"engine: {note}")
        terminal.table(parity_table(report))
        if bundle.has_random_weights:
            terminal.print(random_note())
        terminal.print(report.verdict())
        terminal.print(f"report: {bundle.path / f'{PARITY_STEM}.html'}")
        terminal.print(f"bundle: {bundle.path}")
    raise typer.Exit(report.exit_code)


def build_engines(
    bundle: BundlePath,
    backend: Annotated[
        str, typer.Option(help="tensorrt or tensorrt-rtx; auto takes what can build here.")
    ] = "auto",
    target: Targets = None,
    workspace: Annotated[int | None, typer.Option(min=1, help="Scratch memory, MiB.")] = None,
    tactic_memory: Annotated[
        int | None, typer.Option(min=1, help="Memory for trying one kernel, MiB.")
    ] = None,
    optimization_level: Annotated[int | None, typer.Option(min=0, max=5)] = None,
    force: Annotated[bool, typer.Option(help="Build current engines again too.")] = False,
    json_only: Json = False,
) -> None:
    """Build TensorRT engines from a bundle's ONNX, importing no torch."""
    terminal = make_terminal()
    from structsam_export.bundle.files import size_text
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.engines.build import build
    from structsam_export.engines.kernels import attention_note, attention_warning
    from structsam_export.engines.targets import find_builder

    opened = open_bundle(bundle)
    if opened.has_random_weights:
        terminal.warn(random_note())
    if backend == "auto":
        backend, passed_over = find_builder(target or (), opened.precision)
        for reason in passed_over:
            terminal.warn(f"building with {backend}. {reason}")
    try:
        entries = build(
            opened,
            backend,
            targets=target or (),
            workspace_mb=workspace,
            optimization_level=optimization_level,
            tactic_memory_mb=tactic_memory,
            force=force,
            progress=terminal.build_event,
        )
    finally:
        terminal.close()
    for warning in filter(None, map(attention_warning, entries)):
        terminal.warn(warning)
    if json_only:
        print(json.dumps({"engines": [vars(entry) for entry in entries]}))
    else:
        for entry in entries:
            told = attention_note(entry)
            after = f", {told}" if told else ""
            terminal.print(f"{bundle / entry.file}  {size_text(entry.size)}{after}")


def lint_onnx(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX", help="ONNX file.")],
    dynamic: Annotated[
        str | None, typer.Option(help="Names of dimensions that may vary, such as P,K.")
    ] = None,
    json_only: Json = False,
) -> None:
    """Check the export rules; every violation is named, exit 2 when there is one."""
    terminal = make_terminal()
    from structsam_export.graph.lint import RULES, lint, runtime_needs

    names = None if dynamic is None else frozenset(filter(None, dynamic.split(",")))
    violations, needs = lint(onnx, names), runtime_needs(onnx)
    if json_only:
        found = [vars(violation) for violation in violations]
        print(json.dumps({"violations": found, "needs": needs}))
    else:
        for violation in violations:
            terminal.print(str(violation))
        if needs:
            terminal.print(needs)
        terminal.print(f"{onnx}: {len(violations)} violation(s) of {len(RULES)} rules")
    raise typer.Exit(2 if violations else 0)


def download_checkpoint(
    model: Annotated[str, typer.Argument(help="vit_b, vit_l or vit_h.")],
    directory: Annotated[Path, typer.Option("--dir", help="Folder.")] = Path("checkpoints"),
    url: Annotated[str | None, typer.Option(help="Mirror of the official file.")] = None,
    json_only: Json = False,
) -> None:
    """Fetch an official checkpoint: resumed after an interruption, checked, renamed at the end."""
    terminal = make_terminal()
    from structsam.models.download import download

    try:
        path = download(model, directory, url, progress=terminal.bytes_done)
    finally:
        terminal.close()
    if json_only:
        print(json.dumps({"file": str(path)}))
    else:
        terminal.print(str(path))
