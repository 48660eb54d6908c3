"""Photos and prompts -> folders with masks, an overlay and scores, all with one session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle.features import Features
from structsam_export.bundle.files import sha256_of
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import photo_id_of
from structsam_export.predict.embedding_lookup import EmbeddingLookup
from structsam_export.predict.image_file import read_image
from structsam_export.predict.notes import RANDOM_WEIGHTS_CAPTION, bundle_notes, low_scores
from structsam_export.predict.output_folder import (
    OVERLAY_PNG,
    OutputFolder,
    choose_folder,
    given_folder,
)
from structsam_export.predict.overlay import draw_overlay
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.preprocessing import image_geometry
from structsam_export.predict.prompts import AskedPrompts, Box, Point, read_prompts
from structsam_export.predict.step_clock import StepClock


@dataclass(frozen=True)
class Prediction:
    """What was written for one photo.

    Args:
        overlay: the picture of photo and masks; None when it was not asked for.
        masks: one PNG per prompt (three with `all_masks`), 0 and 255, in the size of the image.
        details: the content of `report`, which is `prediction.json`.
        notes: sentences that a user should read, such as the prompt that was assumed.
    """

    folder: Path
    overlay: Path | None
    report: Path
    masks: tuple[Path, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A photo that gave no prediction, and why."""

    image: Path
    reason: UserError


def predict_image(
    bundle: Bundle,
    image: str | Path,
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    out: str | Path | None = None,
    **options: Any,
) -> Prediction:
    """Predict one photo; see `predict_images`. `out` is its own folder.

    Raises:
        UserError: unreadable image, bad prompts, points with several boxes, unwritable folder, or
            a folder that holds another photo's prediction.
    """
    (result,) = predict_images(bundle, [image], points, boxes, out, **options)
    if isinstance(result, Refused):
        raise result.reason
    return result


def predict_images(
    bundle: Bundle,
    images: Sequence[str | Path],
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    out: str | Path | None = None,
    *,
    backend: str = "auto",
    all_masks: bool = False,
    overlay: bool = True,
    embedding: str | Path | None = None,
    **options: Any,
) -> Iterator[Prediction | Refused]:
    """Predict the masks of image files, and write masks, an overlay and scores into a folder each.

    All points together are one prompt; every box is a prompt of its own; points with one box are
    one prompt together. A single point is ambiguous, so the best of three masks is taken for it;
    for any other prompt the decoder's single mask, as SAM's authors recommend. The prompts apply
    to every photo. The networks are opened once.

    Args:
        points: (x, y, label) in pixels of the upright image; with neither points nor boxes, one
            foreground point in the centre is used, and a note says so.
        boxes: (x0, y0, x1, y1) in pixels of the upright image.
        out: folder of one photo, or, for several, of the folders `<image-stem>-masks`; None
            stands for the current folder, where one photo has `<image-stem>-masks`, too.
        all_masks: write all three masks of every prompt instead of the best one.
        overlay: draw masks and prompts on the photo.
        embedding: that of the photo, as `segment` saved it, or the folder of those of all photos;
            it must be of the same bytes. Nothing is encoded then.
        options: further options of `Predictor`.

    Yields:
        For every photo, in order, what was written, or why not. `timings_ms` of its details are
        wall milliseconds: `load` (opening the networks, for the photo that had to wait for it),
        `read`, `preprocess`, `encode`, `decode`, `upscale`, `write` (drawing included), and
        `total`, which is all of the photo.

    Raises:
        UserError: the backend cannot run, or the points do not go with the boxes.
    """
    prompts = AskedPrompts(tuple(points), tuple(boxes), all_masks)
    saved = None if embedding is None else EmbeddingLookup(Path(embedding), bundle)
    taken: set[Path] = set()
    with ExitStack() as session:
        predictor: Predictor | None = None
        for image in map(Path, images):
            clock = StepClock()
            try:
                photo = _read(bundle, image, prompts, saved, clock)
                folder = (
                    choose_folder(image, photo.sha256, _default_folder(image, out), taken)
                    if out is None or len(images) > 1
                    else given_folder(image, photo.sha256, Path(out))
                )
            except UserError as reason:
                yield Refused(image, reason)
                continue
            with clock.step("load"):
                if predictor is None:
                    predictor = session.enter_context(bundle.predictor(backend, **options))
                    predictor.open(("encoder", "decoder") if embedding is None else ("decoder",))
            try:
                result = _predict(bundle, predictor, photo, folder, clock, overlay)
            except UserError as reason:
                yield Refused(image, reason)
                continue
            yield result


@dataclass(frozen=True)
class _Photo:
    path: Path
    sha256: str
    rgb: np.ndarray
    prompts: AskedPrompts
    notes: tuple[str, ...]
    features: Features | None


def known_of(bundle: Bundle, predictor: Predictor) -> dict[str, Any]:
    """Say what made a prediction, ready for JSON."""
    return {
        "bundle": bundle.name,
        "model": bundle.model.name,
        "rate": bundle.manifest.get("merging", {}).get("rate"),
        "random_weights": bundle.has_random_weights,
        "backend": predictor.backend.name,
    }


def known_of_photo(path: Path, rgb: np.ndarray, sha256: str) -> dict[str, Any]:
    """Say of what photo a prediction is, ready for JSON."""
    height, width = rgb.shape[:2]
    return {"path": str(path), "width": width, "height": height, "sha256": sha256}


def _default_folder(image: Path, out: str | Path | None) -> Path:
    return Path(out or "") / f"{image.stem}-masks"


def _read(
    bundle: Bundle,
    image: Path,
    prompts: AskedPrompts,
    saved: EmbeddingLookup | None,
    clock: StepClock,
) -> _Photo:
    """Read a photo, and refuse a prompt that does not fit it before the encoder runs."""
    notes: list[str] = []
    with clock.step("read"):
        rgb = read_image(image, notes.append)
        sha256 = sha256_of(image)
    height, width = rgb.shape[:2]
    if not prompts.points and not prompts.boxes:
        prompts = AskedPrompts(((width / 2, height / 2, 1),), (), prompts.all_masks)
        notes.append(
            f"no prompt given: used one foreground point in the centre ({width / 2:g}, "
            f"{height / 2:g}). Choose with `points=x,y` or `boxes=x0,y0,x1,y1`"
        )
    geometry = image_geometry(height, width, bundle.preprocessing)
    read_prompts(**prompts.arrays(), geometry=geometry)
    values = None
    if saved is not None:
        with clock.step("read"):
            values = saved.features(image, photo_id_of(sha256))
    notes = [*bundle_notes(bundle, prompts.boxes), *notes]
    return _Photo(image, sha256, rgb, prompts, tuple(notes), values)


def _predict(
    bundle: Bundle,
    predictor: Predictor,
    photo: _Photo,
    folder: OutputFolder,
    clock: StepClock,
    overlay: bool,
) -> Prediction:
    prompts = photo.prompts
    predictor.timings.clear()
    if photo.features is None:
        predictor.set_image(photo.rgb)
    else:
        predictor.set_features(photo.features, photo.rgb.shape[:2])
    scores, low_res = predictor.predict_asked(prompts)
    clock.steps |= predictor.timings
    records = _records(prompts, scores)
    masks = _save_masks(folder, predictor, low_res, records, clock)
    with clock.step("write"):
        if overlay:
            caption = RANDOM_WEIGHTS_CAPTION if bundle.has_random_weights else None
            picture = draw_overlay(photo.rgb, masks, prompts.points, prompts.boxes, caption)
            folder.save_png(OVERLAY_PNG, picture)
        for _ in masks:  # those that no overlay asked for
            pass
    clock.steps["write"] -= clock.steps["upscale"]  # masks are made one by one meanwhile
    notes = [*photo.notes]
    if not bundle.has_random_weights:
        notes += low_scores(scores)
    if folder.earlier:
        notes.append(f"replaced the earlier prediction of {photo.path.name} in {folder.path}")
    names = [mask["file"] for record in records for mask in record["masks"]]
    details = {
        **known_of(bundle, predictor),
        "image": known_of_photo(photo.path, photo.rgb, photo.sha256),
        "prompts": records,
        "timings_ms": clock.milliseconds(),
        "notes": notes,
    }
    report = folder.finish(details, [*names, *([OVERLAY_PNG] if overlay else [])])
    return Prediction(
        folder.path,
        folder.path / OVERLAY_PNG if overlay else None,
        report,
        tuple(folder.path / name for name in names),
        details,
        tuple(notes),
    )


def _records(prompts: AskedPrompts, scores: np.ndarray) -> list[dict[str, Any]]:
    """Describe each prompt and the masks that will be written for it, ready for JSON."""
    records = []
    for prompt, prompt_scores in enumerate(scores):
        best = int(prompt_scores.argmax())
        masks = [
            {
                "file": f"mask_{prompt:02d}{f'_{index}' if prompts.all_masks else ''}.png",
                "score": float(score),
                "best": index == best,
                "output": index + int(prompts.multimask),  # 0 single, 1 to 3 multimask
                "index": index,
            }
            for index, score in enumerate(prompt_scores)
            if prompts.all_masks or index == best
        ]
        records.append(
            {
                "points": [list(point) for point in prompts.points],
                "box": list(prompts.boxes[prompt]) if prompts.boxes else None,
                "masks": masks,
            }
        )
    return records


def _save_masks(
    folder: OutputFolder,
    predictor: Predictor,
    low_res: np.ndarray,
    records: list[dict[str, Any]],
    clock: StepClock,
) -> Iterator[np.ndarray]:
    """Write the masks prompt by prompt, complete their records, and yield the best of each."""
    for record, prompt_low_res in zip(records, low_res, strict=True):
        for entry in record["masks"]:
            with clock.step("upscale"):
                mask = predictor.upscale(prompt_low_res[entry.pop("index")])
            entry["pixels"] = int(mask.sum())
            folder.save_png(entry["file"], Image.fromarray(mask.astype(np.uint8) * 255))
            if entry["best"]:
                best = mask
        yield best
