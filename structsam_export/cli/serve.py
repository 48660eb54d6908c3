"""`structsam-export serve`: a bundle behind HTTP, with a page to click in."""

from __future__ import annotations

import json
import os
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
    random_note,
)
from structsam_export.cli.signals import leave_sigterm

_TOKEN = "STRUCTSAM_TOKEN"


def serve_bundle(
    bundle: BundlePath,
    host: Annotated[str, typer.Option(help="Address; one for others needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(help=f"Requests must bear it; or set {_TOKEN}.")
    ] = None,
    backend: BackendName = "auto",
    hq_token_only: HqTokenOnly = False,
    cache_mb: Annotated[int, typer.Option(min=1, help="Memory for encoded photos, MiB.")] = 1024,
    spill: Annotated[
        Path | None, typer.Option(help="Folder for encoded photos that leave memory.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder that `segment --save-embeddings` made.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Photos that may wait.")] = 16,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of a photo's file, MiB.")] = 64,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """Serve masks and a page to click in at http://127.0.0.1:8000; see /docs there."""
    terminal = make_terminal()
    from structsam_export.bundle import atomic
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.serve.run import require_packages, serve
    from structsam_export.serve.settings import ServeSettings

    require_packages()
    opened = open_bundle(bundle)
    if spill is not None:
        atomic.require_writable(spill)
        spill = spill / opened.files[opened.part("encoder").file].sha256[:16]
    settings = ServeSettings(
        cache_mb=cache_mb, spill=spill, embeddings=embeddings, queue=queue, max_body_mb=max_body_mb
    )
    if opened.has_random_weights:
        terminal.warn(random_note())

    def tell(address: str) -> None:
        if json_only:
            print(json.dumps({"bundle": opened.name, "address": address}), flush=True)
        else:
            terminal.print(f"{opened.name} at {address} (Ctrl-C stops it)")

    leave_sigterm()  # the server answers what it has begun, and then ends by the signal
    try:
        serve(
            opened,
            host,
            port,
            token=token or os.environ.get(_TOKEN),
            backend=backend,
            settings=settings,
            say=tell,
            threads=threads,
            checkpoint=checkpoint,
            hq_token_only=hq_token_only,
        )
    finally:
        terminal.close()
