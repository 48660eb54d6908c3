"""Photos -> folders with a mask of everything: records, one picture, and the masks as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam.mask_runs import mask_of
from structsam_export.bundle.files import sha256_of
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.everything.coco_masks import coco_rle
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.image_file import read_image
from structsam_export.predict.notes import RANDOM_WEIGHTS_CAPTION, bundle_notes
from structsam_export.predict.output_folder import (
    OVERLAY_PNG,
    OutputFolder,
    choose_folder,
    given_folder,
)
from structsam_export.predict.overlay import draw_overlay
from structsam_export.predict.prediction import Prediction, Refused, known_of, known_of_photo
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.step_clock import StepClock

#: Told: photo, done points, all points.
PhotoProgress = Callable[[Path, int, int], None]


def everything_of_images(
    bundle: Bundle,
    images: Sequence[str | Path],
    settings: EverythingSettings,
    out: str | Path | None = None,
    *,
    backend: str = "auto",
    overlay: bool = True,
    progress: PhotoProgress = lambda photo, done, total: None,
    **options: Any,
) -> Iterator[Prediction | Refused]:
    """Find a mask of everything in image files, and write them into a folder each.

    `prediction.json` has a record for every mask, as `Predictor.everything` returns it, with
    compressed or uncompressed run lengths; in the mode `binary_mask` they are PNG files instead,
    0 and 255, which `file` names. The networks are opened once.

    Args:
        out: folder of one photo, or, for several, of the folders `<image-stem>-everything`; None
            stands for the current folder, where one photo has `<image-stem>-everything`, too.
        overlay: draw every mask in a colour of its own, smaller ones above larger ones.
        options: further options of `Predictor`.

    Yields:
        For every photo, in order, what was written, or why not; the times are as in
        `predict_images`.

    Raises:
        UserError: the backend cannot run, or a package is not installed.
    """
    settings.require_packages()
    taken: set[Path] = set()
    with ExitStack() as session:
        predictor: Predictor | None = None
        for image in map(Path, images):
            clock = StepClock()
            try:
                photo = _read(bundle, image, clock)
                wanted = Path(out or "") / f"{image.stem}-everything"
                folder = (
                    choose_folder(image, photo.sha256, wanted, taken)
                    if out is None or len(images) > 1
                    else given_folder(image, photo.sha256, Path(out))
                )
            except UserError as reason:
                yield Refused(image, reason)
                continue
            with clock.step("load"):
                if predictor is None:
                    predictor = session.enter_context(bundle.predictor(backend, **options))
                    predictor.open()
            try:
                runs = replace(settings, output_mode="uncompressed_rle")
                found = predictor.everything(
                    photo.rgb, progress=partial(progress, image), **vars(runs)
                )
                clock.steps |= predictor.timings
                result = _write(photo, found, settings, bundle, predictor, folder, clock, overlay)
            except UserError as reason:
                yield Refused(image, reason)
                continue
            yield result


@dataclass(frozen=True)
class _Photo:
    path: Path
    sha256: str
    rgb: np.ndarray
    notes: tuple[str, ...]


def _read(bundle: Bundle, image: Path, clock: StepClock) -> _Photo:
    notes = bundle_notes(bundle, None)
    with clock.step("read"):
        rgb = read_image(image, notes.append)
        return _Photo(image, sha256_of(image), rgb, tuple(notes))


def _write(
    photo: _Photo,
    found: list[dict[str, Any]],
    settings: EverythingSettings,
    bundle: Bundle,
    predictor: Predictor,
    folder: OutputFolder,
    clock: StepClock,
    overlay: bool,
) -> Prediction:
    size = photo.rgb.shape[0], photo.rgb.shape[1]
    names = []
    with clock.step("write"):
        runs = [np.array(record["segmentation"]["counts"]) for record in found]
        if overlay:
            large_first = sorted(range(len(found)), key=lambda index: -found[index]["area"])
            caption = RANDOM_WEIGHTS_CAPTION if bundle.has_random_weights else None
            masks = (mask_of(runs[index], size) for index in large_first)
            folder.save_png(OVERLAY_PNG, draw_overlay(photo.rgb, masks, caption=caption))
        for index, record in enumerate(found):
            if settings.output_mode == "coco_rle":
                record["segmentation"] = coco_rle(runs[index], size)
            elif settings.output_mode == "binary_mask":
                del record["segmentation"]
                record["file"] = f"mask_{index:04d}.png"
                names.append(record["file"])
                pixels = mask_of(runs[index], size).astype(np.uint8) * 255
                folder.save_png(record["file"], Image.fromarray(pixels))
    notes = [*photo.notes]
    if not found:
        notes.append(
            "no mask was good enough. Lower `pred_iou_thresh=` or `stability_score_thresh=`"
        )
    if folder.earlier:
        notes.append(f"replaced the earlier prediction of {photo.path.name} in {folder.path}")
    details = {
        **known_of(bundle, predictor),
        "image": known_of_photo(photo.path, photo.rgb, photo.sha256),
        "settings": settings.to_dict(),
        "masks": found,
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
