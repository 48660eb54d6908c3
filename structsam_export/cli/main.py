"""`structsam-export`: a thin face of Python functions. Exit 0 done, 1 parity failed, 2 error."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli import bench as cli_bench
from structsam_export.cli import evaluate as cli_evaluate
from structsam_export.cli import study as cli_study
from structsam_export.cli import tune as cli_tune
from structsam_export.cli.arguments import (
    Align,
    Attention,
    BackendName,
    BundlePath,
    Checkpoint,
    Images,
    Json,
    Layers,
    Method,
    Model,
    Options,
    Placement,
    PromptAware,
    PromptForm,
    Proportional,
    Rate,
    Reuse,
    ScheduleFile,
    Seed,
    Targets,
    Threads,
    Weights,
    make_terminal,
    parse_rates,
    prompt_awareness,
    random_note,
    refuse_beside,
)

if TYPE_CHECKING:
    from structsam_export.cli.terminal import Terminal
    from structsam_export.predict.prediction import Prediction

app = typer.Typer(
    name="structsam-export",
    help="Export token-merged Segment Anything to ONNX and TensorRT, run it, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def export(
    context: typer.Context,
    model: Model,
    rate: Rate = "0.5",
    method: Method = "structsam",
    layers: Layers = "all",
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    placement: Placement = "attention",
    reuse: Reuse = 1,
    attention: Attention = "folded",
    option: Options = None,
    schedule: ScheduleFile = None,
    align: Align = 1,
    proportional: Proportional = False,
    prompt_aware: PromptAware = False,
    prompt_form: PromptForm = "rank",
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
    rates = parse_rates(rate)
    if weights == "random":
        terminal.warn(random_note())
    from structsam.config import parse_layers
    from structsam.methods import find_method
    from structsam.methods.options import parse_options
    from structsam_export.pipeline import export as run
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings
    from structsam_export.tune.schedule_file import read_schedule

    use_fast_settings()
    if schedule is not None:
        said = ("rate", "method", "layers", "placement", "option")
        refuse_beside(context, "--schedule", said)
        found = read_schedule(schedule).config(model)
        rates, method, placement = found.rate, found.method, found.placement
        options = dict(found.options)
    else:
        options = parse_options(find_method(method), option or ())
    try:
        result = run(
            model=model,
            rate=rates,
            method=method,
            layers=parse_layers(layers),
            checkpoint=checkpoint,
            weights=weights,
            seed=seed,
            precision=precision,
            attention=attention,
            options=options,
            align=align,
            proportional=proportional,
            prompt_aware=prompt_awareness(prompt_aware, prompt_form),
            placement=placement,
            reuse=reuse,
            backend=backend,
            targets=target or (),
            images=image or (),
            out=out,
            name=name,
            force=force,
            say=terminal.say,
            build_progress=terminal.build_event,
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


@app.command()
def build(
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
    from structsam_export.engines.build import build as run
    from structsam_export.engines.targets import find_builder

    opened = open_bundle(bundle)
    if opened.has_random_weights:
        terminal.warn(random_note())
    if backend == "auto":
        backend, passed_over = find_builder(target or (), opened.precision)
        for reason in passed_over:
            terminal.warn(f"building with {backend}. {reason}")
    try:
        entries = run(
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
    if json_only:
        print(json.dumps([vars(entry) for entry in entries]))
    else:
        for entry in entries:
            terminal.print(f"{bundle / entry.file}  {size_text(entry.size)}")


@app.command()
def check(
    bundle: BundlePath,
    backend: BackendName = "auto",
    image: Images = None,
    require: Annotated[
        list[str] | None, typer.Option(help="Backend that must run; repeat it.")
    ] = None,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """Parity on this machine; exit 1 when it fails."""
    terminal = make_terminal()
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.cli.terminal import parity_table
    from structsam_export.parity.check import check as run
    from structsam_export.runtimes import RunOptions

    opened = open_bundle(bundle)
    if opened.has_random_weights:
        terminal.warn(random_note())
    options = RunOptions(threads=threads, checkpoint=checkpoint)
    report = run(opened, backend, image or (), options, require or (), terminal.say)
    if json_only:
        print(json.dumps(report.to_dict()))
    else:
        terminal.table(parity_table(report))
        if report.exit_code != 2:
            terminal.print(report.verdict())
            terminal.print(f"report: {report.page}")
    if report.exit_code == 2:
        raise UserError(report.verdict())
    raise typer.Exit(report.exit_code)


@app.command()
def predict(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photos.")],
    point: Annotated[
        list[str] | None,
        typer.Option(help="x,y or x,y,label (1 object, 0 background); repeat it."),
    ] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1; repeat it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; IMAGE-masks by default. Of several photos: of their folders."),
    ] = None,
    backend: BackendName = "auto",
    all_masks: Annotated[bool, typer.Option(help="Keep all three masks of every prompt.")] = False,
    overlay: Annotated[bool, typer.Option(help="Draw masks and prompts on the photo.")] = True,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """Masks of photos as PNG, an overlay, and scores as JSON; the prompts apply to each photo."""
    began = time.perf_counter()
    terminal = make_terminal()
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.predict.prediction import Refused, predict_images
    from structsam_export.predict.prompts import parse_box, parse_point

    points, boxes = [parse_point(p) for p in point or ()], [parse_box(b) for b in box or ()]
    opened = open_bundle(bundle)
    results = predict_images(
        opened,
        images,
        points,
        boxes,
        out,
        backend=backend,
        all_masks=all_masks,
        overlay=overlay,
        threads=threads,
        checkpoint=checkpoint,
    )
    told: set[str] = set()
    done, refused = [], []
    for image, result in zip(images, results, strict=True):
        about = f"{image}: " if len(images) > 1 else ""
        if isinstance(result, Refused):
            if not about:
                raise result.reason
            refused.append({"image": str(image), "error": str(result.reason)})
            terminal.warn(f"no masks of {image}: {result.reason}")
            continue
        done.append(result.details)
        for note in result.notes:
            if note not in told:
                terminal.warn(about + note)
            told.add(note)
        if not json_only:
            _show_prediction(terminal, result)
    if json_only:
        several = {"bundle": opened.name, "images": done, "refused": refused}
        print(json.dumps(several if len(images) > 1 else done[0]))
    else:
        seconds = time.perf_counter() - began
        terminal.print(f"{seconds:.1f} s in all, with opening the bundle")
    if refused:
        terminal.warn(f"{len(refused)} of {len(images)} photos gave no masks")
        raise typer.Exit(2)


def _show_prediction(terminal: Terminal, result: Prediction) -> None:
    for prompt in result.details["prompts"]:
        for mask in prompt["masks"]:
            terminal.print(f"{result.folder / mask['file']}  score {mask['score']:.3f}")
    shown = ", ".join(f"{step} {ms:.0f} ms" for step, ms in result.details["timings_ms"].items())
    terminal.print(f"{result.details['backend']}: {shown}")
    if result.overlay:
        terminal.print(f"overlay: {result.overlay}")


@app.command()
def lint(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX", help="ONNX file.")],
    dynamic: Annotated[
        str | None, typer.Option(help="Names of dimensions that may vary, such as P,K.")
    ] = None,
    json_only: Json = False,
) -> None:
    """Check the export rules; every violation is named, exit 2 when there is one."""
    terminal = make_terminal()
    from structsam_export.graph.lint import RULES
    from structsam_export.graph.lint import lint as run

    names = None if dynamic is None else frozenset(filter(None, dynamic.split(",")))
    violations = run(onnx, names)
    if json_only:
        print(json.dumps([vars(violation) for violation in violations]))
    else:
        for violation in violations:
            terminal.print(str(violation))
        terminal.print(f"{onnx}: {len(violations)} violation(s) of {len(RULES)} rules")
    raise typer.Exit(2 if violations else 0)


@app.command(name="list")
def list_all(
    json_only: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the methods as a Markdown table.")
    ] = False,
) -> None:
    """Models, methods with their maximum rates, and backends available here."""
    terminal = make_terminal()
    from structsam_export.cli.inventory import inventory, inventory_tables, method_table_markdown

    facts = inventory()
    if markdown:
        if facts["methods"] is None:
            raise UserError("torch is not installed: pip install 'structsam[export]'")
        print(method_table_markdown(facts["methods"]))
    elif json_only:
        print(json.dumps(facts))
    else:
        for table in inventory_tables(facts):
            terminal.table(table)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="vit_b, vit_l or vit_h.")],
    directory: Annotated[Path, typer.Option("--dir", help="Folder.")] = Path("checkpoints"),
    url: Annotated[str | None, typer.Option(help="Mirror of the official file.")] = None,
) -> None:
    """Fetch an official checkpoint: resumed after an interruption, checked, renamed at the end."""
    terminal = make_terminal()
    from structsam.models.download import download as run

    try:
        path = run(model, directory, url, progress=terminal.bytes_done)
    finally:
        terminal.close()
    terminal.print(str(path))


_STUDY = (cli_study.flops, cli_study.spectrum, cli_study.inspect)
for command in (
    cli_bench.bench,
    *_STUDY,
    cli_evaluate.evaluate,
    cli_evaluate.report,
    cli_tune.tune,
):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; never shows a traceback for a user's or the machine's problem."""
    try:
        app(args=arguments)
    except SystemExit as end:
        if end.code == 130:
            _fail("interrupted; finished files are kept, half-written ones are removed", 130)
        raise
    except UserError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed. Install it with `pip install 'structsam[export]'`")
    except MemoryError:
        _fail("not enough memory. Close other programs, or use a smaller model")
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
