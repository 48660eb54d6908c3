"""What a merged encoder has to beat: the stock encoder, and our own export without merging.

Both are made on the fly with random weights of the same model: they are for latency only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle import ENCODER_ONNX, SCHEMA_VERSION, Bundle

Say = Callable[[str], None]

STOCK = "stock"
UNMERGED = "unmerged"


def make_stock(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Export the encoder of the segment-anything package as it is, in FP32, into `folder`."""
    from structsam.flops import unmerged_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam

    name = like.manifest["model"]["name"]
    say(f"exporting the stock {name} encoder (random weights, for latency only)")
    spec = model_spec(name)
    encoder = build_sam(spec).image_encoder
    return _bundle(like, folder, encoder, "fp32", unmerged_flops(spec).to_dict())


def make_unmerged(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Export the encoder of `like` at rate 0, folded attention and the same precision."""
    from structsam.apply import apply_config
    from structsam.config import MergeConfig
    from structsam.flops import encoder_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam

    name = like.manifest["model"]["name"]
    say(f"exporting {name} without merging (random weights, for latency only)")
    spec = model_spec(name)
    config = MergeConfig(rate=0.0)
    encoder = apply_config(build_sam(spec).image_encoder, config)
    return _bundle(like, folder, encoder, like.precision, encoder_flops(spec, config).to_dict())


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


def _bundle(
    like: Bundle, folder: Path, encoder: Any, precision: str, flops: dict[str, Any]
) -> Bundle:
    """Write a bundle around an encoder; the decoder is a copy of the one of `like`."""
    from structsam_export.graph_modules import EncoderModule, counts_per_block
    from structsam_export.onnx_graph import export_encoder

    folder.mkdir(parents=True)
    blocks = counts_per_block(encoder)
    part = export_encoder(EncoderModule(encoder, precision), folder, ENCODER_ONNX)
    decoder = like.onnx_path("decoder")
    for file in (decoder, decoder.with_name(decoder.name + ".data")):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": folder.name,
        "model": {
            "name": like.manifest["model"]["name"],
            "weights": "random",
            "seed": 0,
            "checkpoint": None,
        },
        "merging": {
            "method": "structsam",
            "rate": 0.0,
            "layers": "all",
            "attention": "folded",
            "blocks": blocks,
            "plan_tensors": [],
        },
        "precision": {"name": precision},
        "flops": flops,
        "encoder": part.to_dict(),
        "decoder": like.part("decoder").to_dict() | {"file": decoder.name},
        "files": {},
        "engines": [],
        "parity": None,
    }
    bundle = Bundle(folder, manifest)
    for file in sorted(folder.iterdir()):
        bundle.record_file(file.name)
    bundle.save_manifest()
    return bundle
