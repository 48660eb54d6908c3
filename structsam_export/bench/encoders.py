"""Encoders that `bench` makes on the fly: merged ones of a model, and what they have to beat.

All have random weights of the model: they are for latency and memory only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.files import sha256_of
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import (
    DECODER_ONNX,
    ENCODER_ONNX,
    MANIFEST,
    SCHEMA_VERSION,
    Part,
)
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.graph.precisions import float_type
from structsam_export.machine import tool_versions
from structsam_export.parity.quantization import encoder_feeds

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.config import MergeConfig
    from structsam.models import ModelSpec
    from structsam_export.predict.calibration_photos import CalibrationPhotos

Say = Callable[[str], None]


def _count_nothing(what: str, done: int, total: int) -> None:
    """Tell nothing: an encoder of random weights is calibrated on few photos."""


_MADE_BY = "bench"
#: What writes a graph: another version of these may write another one.
_WRITERS = ("structsam", "torch", "segment-anything", "onnx", "onnxscript")

STOCK = "stock"
UNMERGED = "unmerged"


def make_merged(
    spec: ModelSpec,
    configs: Sequence[MergeConfig],
    precision: str,
    batch: int,
    folder: Path,
    say: Say,
    calibration: CalibrationPhotos | None = None,
) -> Iterator[Bundle]:
    """Yield a bundle for every configuration, in `folder`; those that lie there are reused.

    Args:
        spec: the model, at its trained input size or another.
        precision: one of `PRECISIONS`.
        batch: images that one call of the encoder takes.
        calibration: of INT8: the photos to measure activations on.
    """
    from structsam_export.bundle.destination import bundle_name

    decoder: Path | None = None
    for config in configs:
        name = bundle_name(spec.label, config, precision) + (f"-batch{batch}" if batch > 1 else "")
        bundle = _merged(spec, config, precision, batch, folder / name, decoder, say, calibration)
        decoder = bundle.onnx_path("decoder") if "decoder" in bundle.parts else None
        yield bundle


def make_unmerged(like: Bundle, attention: str, folder: Path, say: Say) -> Bundle:
    """Return the encoder of `like` at rate 0 and at the trained input size.

    It has the same float type: INT8 is a lever, too.

    Args:
        attention: its form, as in `MergeConfig`.
    """
    from structsam.config import MergeConfig

    spec, decoder = like.model.spec.trained, _decoder_at_trained_size(like)
    config = MergeConfig(rate=0.0, attention=attention)
    precision = float_type(like.precision)
    return _merged(spec, config, precision, batch_of(like), folder, decoder, say)


def make_stock(like: Bundle, folder: Path, say: Say) -> Bundle:
    """Return the encoder of the segment-anything package as it is, in FP32, at its trained size.

    Nothing of ours is in that graph: it is what `torch.onnx.export` makes by default.
    """
    from structsam.flops import unmerged_flops
    from structsam.models.load import build_sam
    from structsam_export.graph.exporter import export_stock_encoder

    spec, batch, decoder = like.model.spec.trained, batch_of(like), _decoder_at_trained_size(like)
    merging = {"method": "none", "rate": 0.0, "layers": "all", "attention": "stock", "blocks": []}

    def write(staged: Path) -> tuple[Part, Part | None, dict[str, Any]]:
        sam = build_sam(spec)
        last = _write_decoder(sam, float_type(like.precision), decoder, staged)
        return export_stock_encoder(sam, staged, ENCODER_ONNX, batch), last, merging

    flops = unmerged_flops(spec).to_dict()
    wanted = _wanted(spec, merging, "fp32", batch, flops, decoder)
    return _reused_or_made(folder, f"the stock {spec.name} encoder", wanted, write, say)


def _decoder_at_trained_size(bundle: Bundle) -> Path | None:
    """A bundle's decoder, or None where it has none, or for another input size than the trained."""
    return (
        None if bundle.model.size or "decoder" not in bundle.parts else bundle.onnx_path("decoder")
    )


def is_made_here(bundle: Bundle) -> bool:
    """Whether `bench` made this bundle, and not its user."""
    return bundle.manifest.get("made_by") == _MADE_BY


def batch_of(bundle: Bundle) -> int:
    """Return how many images one call of the encoder takes."""
    return int(bundle.part("encoder").inputs[0].shape[0])


def attention_form_of(bundle: Bundle) -> str:
    """Return the form of attention of a bundle's encoder, as in `MergeConfig`."""
    return str(bundle.manifest["merging"].get("attention", "folded"))


def prepare(bundle: Bundle, backend: str, say: Say, targets: Sequence[str] = ()) -> None:
    """Build the engines that `backend` needs; what cannot be built is reported by its row.

    Args:
        targets: as in `build`.
    """
    from structsam_export.engines.build import build
    from structsam_export.runtimes import find_backend

    if not find_backend(backend).needs_engine:
        return
    say(f"building {backend} engines of {bundle.name}")
    try:
        build(bundle, backend, targets)
    except UserError as reason:
        say(f"{bundle.name} on {backend}: not built: {reason}")


def _merged(
    spec: ModelSpec,
    config: MergeConfig,
    precision: str,
    batch: int,
    folder: Path,
    decoder: Path | None,
    say: Say,
    calibration: CalibrationPhotos | None = None,
) -> Bundle:
    from structsam.apply import apply_merging
    from structsam.block_table import block_table
    from structsam.flops import encoder_flops
    from structsam.models.load import build_sam
    from structsam_export.graph.exporter import export_encoder
    from structsam_export.graph.modules import EncoderModule
    from structsam_export.graph.quantized_encoder import export_quantized_encoder

    def write(staged: Path) -> tuple[Part, Part | None, dict[str, Any]]:
        sam = build_sam(spec)
        last = _write_decoder(sam, float_type(precision), decoder, staged)
        apply_merging(sam, config)
        if calibration is None:
            first = export_encoder(EncoderModule(sam, precision), staged, ENCODER_ONNX, batch)
        else:
            box, how = bool(config.prompt_aware), spec.preprocessing
            photos = encoder_feeds(calibration.measured, how, box, "calibrating", _count_nothing)
            first = export_quantized_encoder(
                sam, precision, (feed for _, feed in photos), staged, ENCODER_ONNX, batch
            )
        table = block_table(config, spec.grid, spec.window_sizes)
        return first, last, {"blocks": [row.to_dict() for row in table]}

    flops = encoder_flops(spec, config).to_dict()
    wanted = _wanted(spec, config.to_dict(), precision, batch, flops, decoder)
    if calibration is not None:
        wanted["calibration"] = {"method": "max", **calibration.to_dict()}
    what = f"{folder.name}" if config.rate else f"{spec.label} without merging"
    return _reused_or_made(folder, what, wanted, write, say)


def _wanted(
    spec: ModelSpec,
    merging: dict[str, Any],
    precision: str,
    batch: int,
    flops: dict[str, Any],
    decoder: Path | None,
) -> dict[str, Any]:
    """Return the part of the manifest that is known before anything is exported."""
    wanted: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "made_by": _MADE_BY,
        "model": ModelSource(spec.trained, None, "random", 0, spec.image_size, spec.embedding)
        .describe()
        .to_dict(),
        "merging": merging,
        "precision": {"name": precision},
        "batch": batch,
        "flops": flops,
        "writers": {n: v for n, v in tool_versions().items() if n in _WRITERS},
        "sources": _sources(),
    }
    if decoder is not None:
        wanted["decoder_sha256"] = sha256_of(decoder)
    found: dict[str, Any] = json.loads(json.dumps(wanted))
    return found


@functools.cache
def _sources() -> str:
    """Return a digest of the code that decides what a graph computes."""
    import structsam
    import structsam_export.graph

    packages = (
        Path(module.__file__ or "").parent for module in (structsam, structsam_export.graph)
    )
    files = (file for package in packages for file in sorted(package.rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _reused_or_made(
    folder: Path,
    what: str,
    wanted: dict[str, Any],
    write: Callable[[Path], tuple[Part, Part | None, dict[str, Any]]],
    say: Say,
) -> Bundle:
    """Return the bundle in `folder` if it is the wanted one, whole, and written by this code.

    Raises:
        UserError: something else is in its place.
    """
    if folder.exists():
        _refuse_to_replace(folder)
        try:
            bundle = open_bundle(folder)
            merging = bundle.manifest["merging"]
            known = {name: merging.get(name) for name in wanted["merging"]}
            found = {name: bundle.manifest.get(name) for name in wanted}
            if found | {"merging": known} == wanted:
                return bundle
        except UserError:
            pass  # damaged
    say(f"exporting {what} (random weights, for latency only)")
    with atomic.staged_folder(folder) as staged:
        encoder, decoder, merging = write(staged)
        manifest = wanted | {
            "name": folder.name,
            "merging": wanted["merging"] | merging,
            "encoder": encoder.to_dict(),
            **({"decoder": decoder.to_dict()} if decoder else {}),
            "files": {},
            "engines": [],
            "parity": None,
        }
        bundle = Bundle(staged, manifest)
        for file in sorted(staged.iterdir()):
            bundle.record_file(file.name)
        bundle.save_manifest()
    return open_bundle(folder, verify=False)


def _refuse_to_replace(folder: Path) -> None:
    """A folder of the same name may be an export with real weights."""
    try:
        made_by = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("made_by")
    except (OSError, ValueError, AttributeError):
        made_by = None
    if made_by != _MADE_BY:
        raise UserError(
            f"{folder} exists and was not made by `bench`, which would replace it. Choose another "
            "`keep=`, or move it away"
        )


def _write_decoder(sam: Sam, precision: str, decoder: Path | None, folder: Path) -> Part | None:
    """Write the decoder of `sam`, where it has one, or copy one that is known to be the same."""
    from structsam_export.graph.exporter import export_decoder
    from structsam_export.graph.modules import DecoderModule

    if sam.mask_decoder is None:
        return None
    if decoder is not None:
        return _copied_decoder(decoder, folder)
    return export_decoder(DecoderModule(sam, precision), folder, DECODER_ONNX)


def _copied_decoder(file: Path, folder: Path) -> Part:
    """Copy a decoder with the data beside it, and return its contract."""
    for source in (file, file.with_name(file.name + ".data")):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
    return open_bundle(file.parent, verify=False).part("decoder")
