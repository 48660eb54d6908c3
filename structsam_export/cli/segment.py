"""`segment`: masks of a folder of photos, or of a list with prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from structsam_export.cli.arguments import (
    BackendName,
    BundlePath,
    Checkpoint,
    HqTokenOnly,
    Json,
    Threads,
    make_terminal,
    refuse_without,
)
from structsam_export.cli.everything import EverythingOptions
from structsam_export.cli.option_groups import option_names, takes_groups
from structsam_export.cli.photo_paths import from_home


@takes_groups
def segment_photos(
    context: typer.Context,
    *,
    bundle: BundlePath,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, pattern, or .txt, .csv or COCO .json with prompts.",
            callback=from_home,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the result; the same command goes on after a crash.")
    ],
    everything: Annotated[
        bool, typer.Option("--everything", help="A mask of everything, without prompts.")
    ] = False,
    options: EverythingOptions,
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder that names in SOURCE are relative to.", callback=from_home),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also a PNG for every mask.")] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also a picture for every photo.")
    ] = False,
    save_embeddings: Annotated[
        bool, typer.Option("--save-embeddings", help="Also FP16 embeddings, for later prompts.")
    ] = False,
    readers: Annotated[int, typer.Option(min=1, help="Threads that read photos.")] = 2,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Work on Ray: local, auto (a running cluster), or its address."
        ),
    ] = None,
    backend: BackendName = "auto",
    hq_token_only: HqTokenOnly = False,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """Masks of many photos as COCO annotations; resumes, and broken photos do not stop it."""
    began = time.perf_counter()
    terminal = make_terminal()
    if not everything:
        refuse_without(context, "--everything", option_names(EverythingOptions))
    settings = options.settings("coco_rle")
    from structsam_export.bulk.segment import segment
    from structsam_export.bulk.work import Wanted
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.predict.notes import bundle_notes, trust_notes

    opened = open_bundle(bundle)
    for note in bundle_notes(opened, None) if everything else trust_notes(opened):
        terminal.warn(note)
    summary = segment(
        opened,
        source,
        out,
        Wanted(settings if everything else None, masks, overlays, save_embeddings),
        photos=photos,
        backend=backend,
        readers=readers,
        ray=ray,
        progress=lambda done, total: terminal.counted("photos", done, total, with_rate=True),
        threads=threads,
        checkpoint=checkpoint,
        hq_token_only=hq_token_only,
    )
    if json_only:
        print(json.dumps(summary.to_dict()))
        return
    rate = summary.done_now / summary.seconds if summary.seconds else 0
    terminal.print(
        f"{summary.annotations_file}: {summary.annotations} masks of {summary.photos} photos"
    )
    if summary.problems:
        terminal.warn(f"{summary.problems} photos gave no masks: see {summary.problems_file}")
    if summary.noted:
        terminal.warn(f"{summary.noted} photos have notes: see {summary.notes_file}")
    terminal.print(
        f"{summary.done_now} photos done now, {rate:.2f} a second; "
        f"{time.perf_counter() - began:.1f} s in all, with opening the bundle"
    )
