"""Parity: does what runs here compute what the merged PyTorch encoder computes?

Three measures per backend and image: the share of tokens in the same slot (per block), the error
of the embedding, and the IoU of the decoder's masks over a fixed grid of prompts. A result off its
gates is compared once more with PyTorch following the same slots (`replay.py`), which tells
ties that rounding ranked otherwise from faults. A check that cannot run is "not run" with its
reason, never passed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from traceback import format_exception
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.features import Features
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import (
    PARITY_STEM,
    PHOTOS_STEM,
    REFERENCE_FOLDER,
    ParityVerdict,
)
from structsam_export.graph.precisions import PRECISIONS, is_quantized
from structsam_export.parity import polygraphy_files
from structsam_export.parity.compare import ParityReport, ParityRow, compare, keeps_gates
from structsam_export.parity.quantization import cost_of
from structsam_export.parity.reference import (
    Reference,
    compute_reference,
    decode,
    load_reference,
    no_masks,
    prompt_grid,
)
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import read_photo
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions, find_backend
from structsam_export.runtimes.base import Arrays, Backend

logger = logging.getLogger(__name__)
Say = Callable[[str], None]

_GET_REFERENCES = (
    f"Copy {REFERENCE_FOLDER}/ from where the bundle was exported, compare on photos of your own "
    "(torch and the weights compute what is right for them)"
)

#: Where slots differ: the share of tokens of a block that PyTorch would have to send to the same
#: destination, from the same input. FP16 rounds energies to 1e-3, so more of them tie; INT8 is
#: coarser still: docs/int8.md has what was measured.
LEAST_SAME_SLOT = {"fp32": 0.995, "fp16": 0.98}
LEAST_SAME_SLOT |= dict.fromkeys(filter(is_quantized, PRECISIONS), 0.94)


def check(
    bundle: Bundle,
    backend: str = "auto",
    images: Sequence[str | Path] = (),
    options: RunOptions | None = None,
    require: Sequence[str] = (),
    say: Say = lambda text: None,
    save_polygraphy: str | Path | None = None,
) -> ParityReport:
    """Compare what runs here with the merged PyTorch encoder in FP32.

    Args:
        backend: a key of `BACKENDS`, or `auto` for every backend that needs no checkpoint.
        images: photos to compare on; without any, those whose reference the bundle holds. Other
            photos need torch and the weights, to compute their reference, and their report is
            kept beside that of the bundle.
        require: backends that must run; one that cannot raises instead of being "not run".
        save_polygraphy: a folder for the inputs and reference outputs of every photo as Polygraphy
            reads them; see `polygraphy_files`.

    Returns:
        A report that is false when a gate failed or nothing ran. When something ran it is also
        written into the bundle: as `parity.json` and `parity.html`, and its verdict into the
        manifest; for own photos as `parity-photos.json` and `.html`. A check that ran nothing
        leaves the earlier report alone.

    Raises:
        UserError: unknown backend, unreadable image, a required backend cannot run, or Polygraphy
            is not installed.
    """
    options = options or RunOptions()
    if save_polygraphy is not None:
        polygraphy_files.require_polygraphy(Path(save_polygraphy))
    names = [backend]
    if backend == "auto":
        names = [name for name, each in BACKENDS.items() if not each.needs_weights]
        options = replace(options, keep_compiled=False)  # of backends that nobody may use
    names += [name for name in require if name not in names]
    chosen = [find_backend(name) for name in names]
    for name in require:  # judged first: the others may take minutes
        try:
            find_backend(name).runner(bundle, "encoder", options)
        except BackendUnavailable as reason:
            raise UserError(f"required backend {name} cannot run: {reason}") from reason
    model = _ReferenceModel(bundle, options)
    references = _references(bundle, images, model, say)
    if save_polygraphy is not None:
        polygraphy_files.save_polygraphy(bundle, references, Path(save_polygraphy))
        say(f"inputs and reference outputs for Polygraphy: {save_polygraphy}")
    report = ParityReport(bundle.name, bundle.precision, bundle.has_random_weights)
    report.slots = _why_not_compared(bundle, references)
    report.masks = "decoder" in bundle.parts
    report.cost = cost_of(bundle)
    shown: list[tuple[Reference, ParityRow, np.ndarray]] = []
    for engine in chosen:
        try:
            engine.runner(bundle, "encoder", options)  # unopened: says whether it can run here
            for row, reference, masks in _rows(bundle, engine, references, options, model, say):
                report.rows.append(row)
                shown.append((reference, row, masks))
        except BackendUnavailable as reason:
            if engine.name in require:
                raise UserError(f"required backend {engine.name} cannot run: {reason}") from reason
            report.rows += [
                ParityRow(engine.name, r.image, "not run", str(reason)) for r in references
            ]
        except Exception as error:  # one broken runtime must not hide the verdict on the others
            reason_text = " ".join(f"{type(error).__name__}: {error}".split())
            trace = "".join(format_exception(error))
            report.rows.append(
                ParityRow(engine.name, "all", "failed", reason_text, traceback=trace)
            )
            logger.debug("%s broke", engine.name, exc_info=error)
            say(f"{engine.name}: failed: {reason_text}")
    if any(row.status != "not run" for row in report.rows):
        try:
            write_report(bundle, report, shown, PHOTOS_STEM if images else PARITY_STEM)
        except UserError as reason:
            say(f"the report was not kept: {reason}")
    return report


def write_report(
    bundle: Bundle,
    report: ParityReport,
    shown: Sequence[tuple[Reference, ParityRow, np.ndarray]],
    stem: str = PARITY_STEM,
) -> None:
    """Write `STEM.json` and `STEM.html`; the bundle's own verdict goes into the manifest, too."""
    from structsam_export.parity.page import render

    page = render(bundle, report, shown)
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    # Not among the manifest's hashed files: an interrupted check must not spoil a good bundle.
    atomic.write_text(bundle.path / f"{stem}.json", text + "\n")
    report.page = bundle.path / f"{stem}.html"
    atomic.write_text(report.page, page)
    if stem != PARITY_STEM:
        return
    with bundle.manifest_to_change() as manifest:
        backends = {row.backend: row.status for row in report.rows}
        manifest["parity"] = vars(ParityVerdict(bool(report), report.verdict(), backends))


def _references(
    bundle: Bundle, images: Sequence[str | Path], model: _ReferenceModel, say: Say
) -> list[Reference]:
    how = bundle.preprocessing
    stored = {Path(name).name: bundle.file(name) for name in bundle.manifest["reference_images"]}
    if not images:
        bundle.verify(bundle.reference_files, _GET_REFERENCES)
        return [load_reference(read_photo(file, how)) for file in stored.values()]
    references: list[Reference] = []
    for image in map(Path, images):
        photo = read_photo(image, how, note=say)
        known = stored.get(image.name)
        if known is not None and known.is_file() and np.array_equal(read_image(known), photo.rgb):
            bundle.verify(bundle.reference_files, _GET_REFERENCES)
            references.append(load_reference(replace(photo, path=known)))
            continue
        try:
            sam = model.load()
        except BackendUnavailable as reason:
            raise UserError(
                f"the bundle holds no reference for {image.name}, and it cannot be computed here: "
                f"{reason}. Leave `images=` out to check on the images that the bundle holds"
            ) from reason
        say(f"computing the PyTorch reference on {image.name}")
        references.append(compute_reference(sam, photo))
    return references


def _why_not_compared(bundle: Bundle, references: Sequence[Reference]) -> str:
    """Say that slots are not compared, and why; nothing where they are, or where nothing merges."""
    if bundle.part("encoder").plan_outputs or not any(r.plans for r in references):
        return ""
    if bundle.manifest["schema_version"] < 2:
        why = "the bundle is of a version whose encoders lack plan outputs; export it again"
    else:
        why = "the encoder was exported without plan outputs"
    return f"slots: not compared ({why})"


class _ReferenceModel:
    """The merged model in FP32, loaded when it is first asked for."""

    def __init__(self, bundle: Bundle, options: RunOptions) -> None:
        self._bundle, self._options = bundle, options
        self._sam: Any = None

    def load(self) -> Any:
        """Return the `Sam`.

        Raises:
            BackendUnavailable: torch or the weights are not here.
        """
        from structsam_export.runtimes.torch_backend import TorchBackend, load_merged_sam

        if self._sam is None:
            TorchBackend().require_weights(self._bundle, self._options)
            self._sam = load_merged_sam(self._bundle, self._options)
        return self._sam


def _rows(
    bundle: Bundle,
    backend: Backend,
    references: Sequence[Reference],
    options: RunOptions,
    model: _ReferenceModel,
    say: Say,
) -> list[tuple[ParityRow, Reference, np.ndarray]]:
    """Run one backend on all images: one network at a time, so that memory stays low."""
    inputs = [{"image": r.photo.pixels, **r.prompt_feed} for r in references]
    say(f"{backend.name}: encoding {len(inputs)} image(s)")
    encoder = bundle.part("encoder")
    names = [spec.name for spec in encoder.all_outputs]
    with backend.runner(bundle, "encoder", options) as runner:
        encoded = [runner.run(feeds, names) for feeds in inputs]
        runtime = runner.describe()
    rows = []
    with ExitStack() as opened:
        decoder = None
        if "decoder" in bundle.parts:
            say(f"{backend.name}: decoding")
            decoder = opened.enter_context(backend.runner(bundle, "decoder", options))
        for reference, outputs in zip(references, encoded, strict=True):
            features = {spec.name: outputs.pop(spec.name) for spec in bundle.features}
            plan = outputs if encoder.plan_outputs else None
            prompts = prompt_grid(reference.photo.geometry)
            masks, scores = decode(decoder.run, features, *prompts) if decoder else no_masks()
            metrics, same = compare(reference, features, masks, scores, plan)
            good = keeps_gates(metrics, bundle.precision)
            row = ParityRow(
                backend.name,
                reference.image,
                "passed" if good else "failed",
                metrics=metrics,
                same_slot=same,
                runtime=runtime,
            )
            if not good:
                say(f"{backend.name} on {row.image}: off its gates; comparing slots")
                found = features, masks, scores
                row = _with_same_slots(row, bundle, reference, found, plan, model)
            rows.append((row, reference, masks))
    return rows


def _with_same_slots(
    row: ParityRow,
    bundle: Bundle,
    reference: Reference,
    found: tuple[Features, np.ndarray, np.ndarray],
    plan: Arrays | None,
    model: _ReferenceModel,
) -> ParityRow:
    """Compare a failed row with PyTorch following its slots, or say why that cannot be."""
    if plan is None:
        return replace(row, reason="ties ranked otherwise cannot be told from faults without slots")
    first = next((index for index, share in row.same_slot.items() if share < 1), None)
    if first is None:
        return row  # the same slots: nothing to follow
    differ = f"slots differ from block {first} on ({100 * row.same_slot[first]:.2f} % the same)"
    try:
        from structsam_export.parity.replay import CannotFollow, follow
    except ModuleNotFoundError:
        return replace(row, reason=f"{differ}; torch tells ties from faults, and is not installed")
    try:
        sam = model.load()
        followed, same = follow(sam, reference, plan)
    except (CannotFollow, UserError) as reason:
        return replace(row, reason=f"{differ}; whether by ties was not found out: {reason}")
    metrics, _ = compare(followed, *found, None)
    row = replace(row, followed={"metrics": metrics, "same_slot": same})
    least = min(same.values())
    if not keeps_gates(metrics, bundle.precision) or least < LEAST_SAME_SLOT[bundle.precision]:
        return replace(row, reason=f"{differ}; not by ties alone, see `followed`")
    masks = (
        f", mask IoU at least {metrics['min_mask_iou']:.4f}" if "min_mask_iou" in metrics else ""
    )
    told = (
        f"ties ranked otherwise: {differ}. With the same slots PyTorch computes the same: relative "
        f"L2 {metrics['relative_l2']:.1e}{masks}; from the same input it chooses at least "
        f"{100 * least:.2f} % of a block's slots alike"
    )
    return replace(row, status="passed", reason=told)
