"""Encoders that `bench` makes on the fly: merged ones of a model, and what they have to beat.

All have random weights of the model: they are for latency and memory only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export import atomic
from structsam_export.bundle import (
    DECODER_ONNX,
    ENCODER_ONNX,
    SCHEMA_VERSION,
    Bundle,
    Part,
    open_bundle,
)
from structsam_export.machine import tool_versions

if TYPE_CHECKING:
    from structsam.config import MergeConfig

Say = Callable[[str], None]

STOCK = "stock"
UNMERGED = "unmerged"


def make_merged(
    model: str,
    configs: Sequence[MergeConfig],
    precision: str,
    batch: int,
    folder: Path,
    say: Say,
) -> Iterator[Bundle]:
    """Yield a bundle for every configuration, in `folder`; those that lie there are reused.

    Args:
        model: key of `structsam.models.MODELS`.
        precision: `fp16` or `fp32`.
        batch: images that one call of the encoder takes.
    """
    from structsam_export.pipeline import bundle_name

    decoder: Path | None = None
    for config in configs:
        name = bundle_name(model, config, precision) + (f"-batch{batch}" if batch > 1 else "")
        bundle = _merged(model, config, precision, batch, folder / name, decoder, say)
        decoder = bundle.onnx_path("decoder")
        yield bundle


def make_unmerged(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Return the encoder of `like` at rate 0, folded attention and the same precision."""
    from structsam.config import MergeConfig

    model, decoder = like.manifest["model"]["name"], like.onnx_path("decoder")
    config = MergeConfig(rate=0.0)
    return _merged(model, config, like.precision, batch_of(like), folder, decoder, say)


def make_stock(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Return the encoder of the segment-anything package as it is, in FP32.

    Nothing of ours is in that graph: it is what `torch.onnx.export` makes by default.
    """
    from structsam.flops import unmerged_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam
    from structsam_export.onnx_graph import export_stock_encoder

    model, batch = like.manifest["model"]["name"], batch_of(like)
    spec = model_spec(model)
    merging = {"method": "none", "rate": 0.0, "layers": "all", "attention": "stock", "blocks": []}

    def write(staged: Path) -> tuple[Part, Part, dict[str, Any]]:
        part = export_stock_encoder(build_sam(spec).image_encoder, staged, ENCODER_ONNX, batch)
        return part, _copied_decoder(like.onnx_path("decoder"), staged), merging

    flops = unmerged_flops(spec).to_dict()
    wanted = _wanted(model, merging, "fp32", batch, flops)
    return _reused_or_made(folder, f"the stock {model} encoder", wanted, write, say)


def batch_of(bundle: Bundle) -> int:
    """Return how many images one call of the encoder takes."""
    return int(bundle.part("encoder").inputs[0].shape[0])


def prepare(bundle: Bundle, backend: str, say: Say) -> None:
    """Build the engines that `backend` needs; what cannot be built is reported by its row."""
    from structsam_export.backends import find_backend
    from structsam_export.engine_build import build

    if not find_backend(backend).needs_engine:
        return
    say(f"building {backend} engines of {bundle.name}")
    try:
        build(bundle, backend)
    except UserError as reason:
        say(f"{bundle.name} on {backend}: not built: {reason}")


def _merged(
    model: str,
    config: MergeConfig,
    precision: str,
    batch: int,
    folder: Path,
    decoder: Path | None,
    say: Say,
) -> Bundle:
    from structsam.apply import apply_config
    from structsam.flops import encoder_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam
    from structsam_export.graph_modules import DecoderModule, EncoderModule, counts_per_block
    from structsam_export.onnx_graph import export_decoder, export_encoder

    spec = model_spec(model)

    def write(staged: Path) -> tuple[Part, Part, dict[str, Any]]:
        sam = build_sam(spec)
        if decoder is None:
            last = export_decoder(DecoderModule(sam, precision), staged, DECODER_ONNX)
        else:
            last = _copied_decoder(decoder, staged)
        encoder = apply_config(sam.image_encoder, config)
        first = export_encoder(EncoderModule(encoder, precision), staged, ENCODER_ONNX, batch)
        return first, last, {"blocks": counts_per_block(encoder), "plan_tensors": []}

    flops = encoder_flops(spec, config).to_dict()
    wanted = _wanted(model, config.to_dict(), precision, batch, flops)
    what = f"{folder.name}" if config.rate else f"{model} without merging"
    return _reused_or_made(folder, what, wanted, write, say)


def _wanted(
    model: str, merging: dict[str, Any], precision: str, batch: int, flops: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of the manifest that is known before anything is exported."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": model, "weights": "random", "seed": 0, "checkpoint": None},
        "merging": merging,
        "precision": {"name": precision},
        "batch": batch,
        "flops": flops,
        "tool_versions": tool_versions(),
    }


def _reused_or_made(
    folder: Path,
    what: str,
    wanted: dict[str, Any],
    write: Callable[[Path], tuple[Part, Part, dict[str, Any]]],
    say: Say,
) -> Bundle:
    """Return the bundle in `folder` if it is the wanted one, whole and of these versions."""
    wanted = json.loads(json.dumps(wanted))
    try:
        bundle = open_bundle(folder)
        manifest = dict(bundle.manifest)
        known = {name: manifest["merging"].get(name) for name in wanted["merging"]}
        if {name: manifest.get(name) for name in wanted} | {"merging": known} == wanted:
            return bundle
    except UserError:
        pass  # not there, or damaged
    say(f"exporting {what} (random weights, for latency only)")
    with atomic.staged_folder(folder) as staged:
        encoder, decoder, merging = write(staged)
        manifest = wanted | {
            "name": folder.name,
            "merging": wanted["merging"] | merging,
            "encoder": encoder.to_dict(),
            "decoder": decoder.to_dict(),
            "files": {},
            "engines": [],
            "parity": None,
        }
        bundle = Bundle(staged, manifest)
        for file in sorted(staged.iterdir()):
            bundle.record_file(file.name)
        bundle.save_manifest()
    return open_bundle(folder, verify=False)


def _copied_decoder(file: Path, folder: Path) -> Part:
    """Copy a decoder with the data beside it, and return its contract."""
    for source in (file, file.with_name(file.name + ".data")):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
    return open_bundle(file.parent, verify=False).part("decoder")
