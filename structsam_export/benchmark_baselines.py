"""What a merged encoder has to beat: the stock encoder, and our own export without merging.

Both are made on the fly with random weights of the same model: they are for latency only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle import ENCODER_ONNX, SCHEMA_VERSION, Bundle, Part

Say = Callable[[str], None]

STOCK = "stock"
UNMERGED = "unmerged"


def make_stock(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Export the encoder of the segment-anything package as it is, in FP32, into `folder`.

    Nothing of ours is in that graph: it is what `torch.onnx.export` makes by default.
    """
    from structsam.flops import unmerged_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam
    from structsam_export.onnx_graph import export_stock_encoder

    name = like.manifest["model"]["name"]
    say(f"exporting the stock {name} encoder (random weights, for latency only)")
    spec = model_spec(name)
    encoder = build_sam(spec).image_encoder
    folder.mkdir(parents=True)
    part = export_stock_encoder(encoder, folder, ENCODER_ONNX)
    merging = {"method": "none", "rate": 0.0, "layers": "all", "attention": "stock", "blocks": []}
    return _bundle(like, folder, part, merging, "fp32", unmerged_flops(spec).to_dict())


def make_unmerged(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Export the encoder of `like` at rate 0, folded attention and the same precision."""
    from structsam.apply import apply_config
    from structsam.config import MergeConfig
    from structsam.flops import encoder_flops
    from structsam.models import model_spec
    from structsam.models.load import build_sam
    from structsam_export.graph_modules import EncoderModule, counts_per_block
    from structsam_export.onnx_graph import export_encoder

    name = like.manifest["model"]["name"]
    say(f"exporting {name} without merging (random weights, for latency only)")
    spec = model_spec(name)
    config = MergeConfig(rate=0.0)
    encoder = apply_config(build_sam(spec).image_encoder, config)
    folder.mkdir(parents=True)
    part = export_encoder(EncoderModule(encoder, like.precision), folder, ENCODER_ONNX)
    merging = config.to_dict() | {"blocks": counts_per_block(encoder)}
    flops = encoder_flops(spec, config).to_dict()
    return _bundle(like, folder, part, merging, like.precision, flops)


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
    like: Bundle,
    folder: Path,
    part: Part,
    merging: dict[str, Any],
    precision: str,
    flops: dict[str, Any],
) -> Bundle:
    """Write a bundle around an encoder's graph; the decoder is a copy of the one of `like`."""
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
        "merging": merging | {"plan_tensors": []},
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
