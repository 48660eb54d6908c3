"""The commands that run bundles: `check` and `predict`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam_export.cli.arguments import (
    BackendName,
    BundlePath,
    Checkpoint,
    HqTokenOnly,
    Images,
    Json,
    Threads,
    make_terminal,
    random_note,
)
from structsam_export.cli.errors import FAILED, CommandFailed
from structsam_export.cli.photo_paths import all_from_home

if TYPE_CHECKING:
    from structsam_export.cli.terminal import Terminal
    from structsam_export.predict.prediction import Prediction, Refused

Photos = Annotated[
    list[Path], typer.Argument(metavar="IMAGE...", help="Photos.", callback=all_from_home)
]


def check_bundle(
    bundle: BundlePath,
    backend: BackendName = "auto",
    image: Images = None,
    require: Annotated[
        list[str] | None, typer.Option(help="Backend that must run; repeat it.")
    ] = None,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    save_polygraphy: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write inputs and reference outputs for NVIDIA's Polygraphy, "
            "and how to run it.",
        ),
    ] = None,
    json_only: Json = False,
) -> None:
    """Parity on this machine; exit 1 when it fails."""
    terminal = make_terminal()
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.cli.terminal import parity_table
    from structsam_export.parity.check import check
    from structsam_export.runtimes import RunOptions

    opened = open_bundle(bundle)
    if opened.has_random_weights:
        terminal.warn(random_note())
    options = RunOptions(threads=threads, checkpoint=checkpoint)
    report = check(
        opened, backend, image or (), options, require or (), terminal.say, save_polygraphy
    )
    if not json_only:
        terminal.table(parity_table(report))
    if report.exit_code == FAILED:
        raise CommandFailed(report.verdict(), report.to_dict())
    if json_only:
        print(json.dumps(report.to_dict()))
    else:
        terminal.print(report.verdict())
        terminal.print(f"report: {report.page}")
    raise typer.Exit(report.exit_code)


def predict_masks(
    bundle: BundlePath,
    images: Photos,
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
    hq_token_only: HqTokenOnly = False,
    all_masks: Annotated[bool, typer.Option(help="Keep all three masks of every prompt.")] = False,
    overlay: Annotated[bool, typer.Option(help="Draw masks and prompts on the photo.")] = True,
    embedding: Annotated[
        Path | None,
        typer.Option(help="The photo's, from `segment --save-embeddings`; or their folder."),
    ] = None,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """Masks of photos as PNG, an overlay, and scores as JSON; the prompts apply to each photo."""
    began = time.perf_counter()
    terminal = make_terminal()
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.predict.prediction import predict_images
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
        embedding=embedding,
        threads=threads,
        checkpoint=checkpoint,
        hq_token_only=hq_token_only,
    )
    tell_photos(terminal, opened.name, images, results, _show_prediction, json_only, began)


def tell_photos(
    terminal: Terminal,
    bundle: str,
    images: Sequence[Path],
    results: Iterable[Prediction | Refused],
    show: Callable[[Terminal, Prediction], None],
    json_only: bool,
    began: float,
) -> None:
    """Tell what was written for every photo, while it is; raise at the end if some gave no masks.

    Args:
        show: prints one photo's prediction; not called with `json_only`.
        began: `time.perf_counter()` when the command began.

    Raises:
        UserError: the only photo was refused.
        CommandFailed: some of several were.
    """
    from structsam_export.predict.prediction import Refused

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
            show(terminal, result)
    several = {"bundle": bundle, "images": done, "refused": refused}
    if refused:
        raise CommandFailed(f"{len(refused)} of {len(images)} photos gave no masks", several)
    if json_only:
        print(json.dumps(several if len(images) > 1 else done[0]))
    else:
        seconds = time.perf_counter() - began
        terminal.print(f"{seconds:.1f} s in all, with opening the bundle")


def _show_prediction(terminal: Terminal, result: Prediction) -> None:
    for prompt in result.details["prompts"]:
        for mask in prompt["masks"]:
            terminal.print(f"{result.folder / mask['file']}  score {mask['score']:.3f}")
    tell_times(terminal, result)


def tell_times(terminal: Terminal, result: Prediction) -> None:
    """Print what each step of a photo took, and where its picture is."""
    shown = ", ".join(f"{step} {ms:.0f} ms" for step, ms in result.details["timings_ms"].items())
    terminal.print(f"{result.details['backend']}: {shown}")
    if result.overlay:
        terminal.print(f"overlay: {result.overlay}")
