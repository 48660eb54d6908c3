"""The steps of export: load, merge, reference, ONNX, lint, engines, parity, manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam.merging.attention_forms import USUAL
from structsam_export.bundle import atomic
from structsam_export.bundle.destination import bundle_name, refuse_to_lose
from structsam_export.bundle.files import size_text
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import (
    DECODER_ONNX,
    ENCODER_ONNX,
    REFERENCE_FOLDER,
    SCHEMA_VERSION,
)
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.engines.build import build
from structsam_export.engines.kernels import attention_note, attention_warning
from structsam_export.engines.plan import plan_engines
from structsam_export.graph.attention_choice import attention_for
from structsam_export.graph.lint import require_clean
from structsam_export.graph.precisions import PRECISION_MAPS, float_type, require_precision
from structsam_export.machine import tool_versions
from structsam_export.parity.check import check
from structsam_export.parity.compare import ParityReport
from structsam_export.parity.quantization import Count, encoder_feeds, quantization_cost
from structsam_export.parity.reference import compute_reference
from structsam_export.predict.calibration_photos import CalibrationPhotos
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import read_photo
from structsam_export.runtimes import RunOptions

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.config import MergeConfig
    from structsam.models.spec import Embedding, ModelSpec

Say = Callable[[str], None]

_log = logging.getLogger("structsam_export")

#: The photo that parity uses when no image is given (see assets/NOTICE.txt).
SAMPLE_IMAGE = Path(__file__).parent / "assets" / "coffee.png"


@dataclass
class ExportedBundle(Bundle):
    """The bundle that `export` made, opened, and how it went.

    Args:
        parity: false when a gate failed or nothing could be run.
        seconds: wall time of each step.
        engine_notes: which engines were built, and which could not be, with the reason.
    """

    parity: ParityReport
    seconds: dict[str, float] = field(default_factory=dict)
    engine_notes: list[str] = field(default_factory=list)


def export(
    model: str | ModelSpec,
    config: MergeConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    embedding: Embedding = "native",
    precision: str = "fp16",
    calibrate: str | Path | None = None,
    plan_outputs: bool = True,
    backend: str = "auto",
    targets: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    out: str | Path = "engines",
    name: str | None = None,
    force: bool = False,
    say: Say = lambda text: None,
    build_progress: Callable[[Any], None] | None = None,
    count: Count = lambda what, done, total: None,
    **choice: Any,
) -> ExportedBundle:
    """Turn a SAM checkpoint into a bundle.

    Args:
        model: key of `structsam.models.MODELS`, a TOML file that describes one, `auto` for what
            the checkpoint holds, or a description.
        config: what merges where; the default one when None.
        checkpoint: `.pth`, `.safetensors`, or the folder of a Hugging Face `SamModel`; vit_t needs
            none.
        weights: `random` for latency work without a checkpoint; masks are then meaningless.
        image_size: another side of the input in pixels, a multiple of the patch from 256 to 2048.
        embedding: with it: `native`, a smaller embedding and decoder, or `upsample`.
        precision: `fp16`, `fp32`, `int8` (linear layers in INT8, the rest FP16, for GPUs) or
            `int8-fp32` (the rest FP32, for CPUs), baked into the graph.
        calibrate: folder of 16 to 128 photos that INT8 measures activations on; a quarter of them
            is held out, for what INT8 costs.
        plan_outputs: the encoder also gives the slots of every block that merges, int32, which a
            check of parity follows; without them slots are not compared.
        backend: what parity runs on; an engine backend is also built for.
        targets: GPU generations to build TensorRT for RTX engines for, such as `sm89`.
        images: photos for parity; a photo that comes with the package when none is given.
        out: folder to put the bundle into.
        force: replace a bundle of real weights by one of random weights.
        count: told how many photos of calibration are done.
        choice: fields of `structsam.MergeConfig` in place of those of `config`, by name, such as
            `rate=0.5, layers="global"`.

    Raises:
        UserError: any input that cannot be used; nothing is written then.
    """
    from structsam.block_table import block_table
    from structsam.config import MergeConfig
    from structsam.models.checkpoint_file import read_checkpoint
    from structsam.models.checkpoint_preprocessing import preprocessing_note
    from structsam.models.find_model import find_model

    found, told = find_model(model, checkpoint)
    if told:
        say(told)
    source = ModelSource(found, checkpoint, weights, seed, image_size, embedding)
    spec = source.spec
    config = MergeConfig.of(config, **choice)
    block_table(config, spec.grid, spec.window_sizes)  # refuses what does not fit the model
    require_precision(precision, calibrate)
    if calibrate is not None:
        spec.require_decoder("what INT8 costs is measured in masks")
    photos = [Path(image).expanduser() for image in images] or [SAMPLE_IMAGE]
    for photo in photos:
        read_image(photo, say)
    calibration = None if calibrate is None else CalibrationPhotos.of(calibrate, say)
    source.require()
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise UserError(
            f"{name!r} is no name for a folder. Choose the folder around it with `out=`"
        )
    final = Path(out) / (name or bundle_name(spec.label, config, precision))
    refuse_to_lose(final, weights, force)
    atomic.require_writable(final.parent)
    engine_plan, notes = plan_engines(backend, targets, precision)
    runtime = next(iter(engine_plan), "onnxruntime" if backend == "auto" else backend)
    config, why = attention_for(config, runtime, precision)
    notes += [why] if why and (engine_plan or config.attention not in USUAL) else []

    clock = _Clock(say)
    clock.step(f"loading {spec.label}")
    described = source.describe()
    if checkpoint is not None:
        title = read_checkpoint(checkpoint, spec).title
        say(f"{Path(checkpoint).name}: {title}{preprocessing_note(spec)}")
    sam = source.load()
    with atomic.staged_folder(final) as folder:
        manifest = _manifest(final.name, spec, config, precision, described.to_dict())
        bundle = Bundle(folder, manifest)
        _write_networks(bundle, sam, config, photos, plan_outputs, calibration, clock, count)
        del sam
        clock.step("checking the export rules")
        for part in bundle.parts:
            require_clean(folder / manifest[part]["file"])
            bundle.record_file(manifest[part]["file"])
        bundle.save_manifest()
        for engine, own_targets in engine_plan.items():
            clock.step(f"building {engine} engines")
            for entry in build(bundle, engine, own_targets, progress=build_progress):
                size = size_text(entry.size)
                notes.append(f"{entry.file}: {size}, {entry.build_seconds:.0f} s")
                notes += filter(None, (attention_note(entry), attention_warning(entry)))
        clock.step("checking parity")
        run_options = RunOptions(checkpoint=Path(checkpoint) if checkpoint else None)
        # An engine for another GPU cannot run here; its graph can.
        judge = "auto" if backend in engine_plan else backend
        report = check(bundle, judge, options=run_options, say=say)
        for lock in folder.rglob(".*.lock"):
            lock.unlink()  # nobody else has known this folder
    seconds = clock.stop()
    manifest = open_bundle(final, verify=False).manifest
    return ExportedBundle(final, manifest, report, seconds, notes)


def _manifest(
    name: str, spec: Any, config: MergeConfig, precision: str, source: dict[str, Any]
) -> dict[str, Any]:
    from structsam.block_table import block_table
    from structsam.flops import encoder_flops

    table = block_table(config, spec.grid, spec.window_sizes)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": source,
        "merging": config.to_dict() | {"blocks": [row.to_dict() for row in table]},
        "flops": encoder_flops(spec, config).to_dict(),
        "precision": {"name": precision, **PRECISION_MAPS[precision]},
        "preprocessing": spec.preprocessing.to_dict(),
        "tool_versions": tool_versions(),
        "files": {},
        "engines": [],
        "parity": None,
    }


def _write_networks(
    bundle: Bundle,
    sam: Sam,
    config: MergeConfig,
    photos: Sequence[Path],
    plan_outputs: bool,
    calibration: CalibrationPhotos | None,
    clock: _Clock,
    count: Count,
) -> None:
    from structsam.apply import apply_merging
    from structsam_export.graph.exporter import export_decoder, export_encoder
    from structsam_export.graph.modules import DecoderModule, EncoderModule
    from structsam_export.graph.quantized_encoder import export_quantized_encoder

    rest = float_type(bundle.precision)
    manifest, folder = bundle.manifest, bundle.path
    apply_merging(sam, config)
    manifest["reference_images"] = []
    for photo in photos:
        clock.step(f"computing the PyTorch reference on {photo.name}")
        reference = compute_reference(sam, read_photo(photo, bundle.preprocessing))
        for file in reference.save(folder / REFERENCE_FOLDER):
            bundle.record_file(file.relative_to(folder).as_posix())
        manifest["reference_images"].append(f"{REFERENCE_FOLDER}/{photo.name}")
    if sam.mask_decoder is not None:
        clock.step("exporting the decoder to ONNX")
        decoder = DecoderModule(sam, rest)
        manifest["decoder"] = export_decoder(decoder, folder, DECODER_ONNX).to_dict()
    clock.step("exporting the encoder to ONNX")
    if calibration is None:
        encoder = EncoderModule(sam, rest, plan_outputs)
        manifest["encoder"] = export_encoder(encoder, folder, ENCODER_ONNX).to_dict()
    else:
        feeds = encoder_feeds(
            calibration.measured,
            bundle.preprocessing,
            bool(config.prompt_aware),
            "calibrating",
            count,
        )
        manifest["encoder"] = export_quantized_encoder(
            sam,
            bundle.precision,
            (feed for _, feed in feeds),
            folder,
            ENCODER_ONNX,
            plan_outputs=plan_outputs,
            say=clock.step,
        ).to_dict()
    for part in bundle.parts:
        data = f"{manifest[part]['file']}.data"
        if (folder / data).is_file():
            bundle.record_file(data)
    if calibration is not None:
        clock.step("measuring what INT8 costs on photos held out")
        cost = quantization_cost(bundle, sam, calibration.held_out, count)
        manifest["calibration"] = {"method": "max", **calibration.to_dict(), "cost": vars(cost)}


class _Clock:
    """Announces the steps and keeps their wall times."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def step(self, title: str) -> None:
        self.stop()
        self._say(title)
        self._current = (title, time.perf_counter())

    def stop(self) -> dict[str, float]:
        if self._current:
            title, start = self._current
            self._seconds[title] = round(time.perf_counter() - start, 2)
            _log.debug("%s took %.2f s", title, self._seconds[title])
            self._current = None
        return self._seconds
