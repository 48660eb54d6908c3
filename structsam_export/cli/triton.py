"""`structsam-export triton`: a model repository for NVIDIA Triton."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from structsam_export.cli.arguments import BundlePath, Json, make_terminal


def write_triton_repository(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the repository; new or empty.")],
    backend: Annotated[
        str,
        typer.Option(
            help="onnxruntime, tensorrt; auto: tensorrt where its plans are, but for --kind cpu."
        ),
    ] = "auto",
    kind: Annotated[
        str, typer.Option(help="Where the networks run: gpu, cpu; auto: what the server has.")
    ] = "auto",
    instances: Annotated[
        int, typer.Option(min=1, help="Copies of each network, on every GPU or on the CPU.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer prompts.")] = 2,
    cache_mb: Annotated[
        int, typer.Option(min=1, help="Embeddings that each of them keeps, MiB.")
    ] = 512,
    name: Annotated[str, typer.Option(help="What the models' names begin with.")] = "structsam",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a repository that lies there.")
    ] = False,
    json_only: Json = False,
) -> None:
    """Write a Triton model repository: photo and prompts in, masks out."""
    terminal = make_terminal()
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.predict.notes import trust_notes
    from structsam_export.triton.repository import write_repository
    from structsam_export.triton.settings import TritonSettings

    settings = TritonSettings(name, backend, kind, instances, workers, cache_mb)
    opened = open_bundle(bundle)
    made = write_repository(opened, out, settings, force)
    for note in trust_notes(opened):
        terminal.warn(note)
    if json_only:
        facts = {
            "repository": str(made.path),
            "backend": made.backend,
            "tensorrt": made.built_with,
            "models": list(made.models),
        }
        print(json.dumps(facts))
        return
    for model in made.models.values():
        terminal.print(f"{made.path / model['name']}  {model.get('backend', 'ensemble')}")
    if made.built_with:
        terminal.warn(
            f"the server must have TensorRT {made.built_with}, with which the plans were built"
        )
    terminal.print(f"how to serve it: {made.path / 'README.md'}")
