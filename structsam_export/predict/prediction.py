"""One image file, its prompts as the command line writes them, and a folder with the masks."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.image_file import read_image
from structsam_export.predict.overlay import Box, Point, draw_overlay
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.preprocessing import image_geometry
from structsam_export.predict.prompts import read_prompts

OVERLAY_PNG = "overlay.png"
PREDICTION_JSON = "prediction.json"
RANDOM_WEIGHTS_CAPTION = "random weights: masks carry no meaning"
_MASK_NAME = re.compile(r"mask_\d+(_\d)?\.png")


@dataclass(frozen=True)
class Prediction:
    """What `predict_image` wrote.

    Args:
        masks: one PNG per prompt (three with `all_masks`), 0 and 255, in the size of the image.
        details: the content of `report`, which is `prediction.json`.
        notes: sentences that a user should read, such as the prompt that was assumed.
    """

    folder: Path
    overlay: Path
    report: Path
    masks: tuple[Path, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]


def parse_point(text: str) -> Point:
    """Read `x,y` (foreground) or `x,y,label`, label 1 for foreground and 0 for background.

    Raises:
        UserError: anything else.
    """
    values = _numbers(text)
    if values is None or len(values) not in (2, 3) or values[2:] not in ([], [0.0], [1.0]):
        raise UserError(
            f"point {text!r} is not x,y or x,y,label with label 1 (foreground) or 0 (background). "
            "Write for example 450,300 or 450,300,0"
        )
    return values[0], values[1], int(values[2]) if len(values) == 3 else 1


def parse_box(text: str) -> Box:
    """Read `x0,y0,x1,y1`: the top left corner, then the bottom right one.

    Raises:
        UserError: anything else.
    """
    values = _numbers(text)
    if values is None or len(values) != 4:
        raise UserError(
            f"box {text!r} is not x0,y0,x1,y1. Write the top left corner, then the bottom right "
            "one, for example 100,50,400,300"
        )
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def predict_image(
    bundle: Bundle,
    image_path: str | Path,
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    out: str | Path | None = None,
    *,
    backend: str = "auto",
    all_masks: bool = False,
    **options: Any,
) -> Prediction:
    """Predict the masks of an image file, and write masks, an overlay and scores into a folder.

    All points together are one prompt; every box is a prompt of its own; points with one box are
    one prompt together. A single point is ambiguous, so the best of three masks is taken for it;
    for any other prompt the decoder's single mask, as SAM's authors recommend.

    Args:
        points: (x, y, label) in pixels of the upright image; with neither points nor boxes, one
            foreground point in the centre is used, and a note says so.
        boxes: (x0, y0, x1, y1) in pixels of the upright image.
        out: folder for the files; None stands for `<image-stem>-masks` in the current folder.
        all_masks: write all three masks of every prompt instead of the best one.
        options: further options of `Predictor`.

    Raises:
        UserError: unreadable image, bad prompts, points with several boxes, unwritable folder.
    """
    image_path = Path(image_path)
    rgb = read_image(image_path)
    height, width = rgb.shape[:2]
    notes = [RANDOM_WEIGHTS_CAPTION] if bundle.has_random_weights else []
    parity = bundle.manifest.get("parity")
    if parity and not parity["passed"]:
        notes.append(
            "this bundle failed parity when it was checked last, so masks may differ from "
            "PyTorch's: see parity.html in its folder"
        )
    if not points and not boxes:
        points = [(width / 2, height / 2, 1)]
        notes.append(
            f"no prompt given: used one foreground point in the centre ({width / 2:g}, "
            f"{height / 2:g}). Choose with --point x,y or --box x0,y0,x1,y1"
        )
    prompts = _prompt_arrays(points, boxes)
    geometry = image_geometry(height, width, bundle.preprocessing)
    read_prompts(**prompts, geometry=geometry)  # refuses a bad prompt before the encoder runs
    multimask = all_masks or (len(points) == 1 and not boxes)
    folder = Path(f"{image_path.stem}-masks") if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is needed. Choose another with --out")
    if bundle.takes_box:
        notes.append(_which_box(boxes))
    with bundle.predictor(backend=backend, **options) as predictor:
        predictor.set_image(rgb)
        scores, low_res = predictor.predict_low_res(**prompts, multimask_output=multimask)
        scores, low_res = (a if a.ndim == n else a[None] for a, n in ((scores, 2), (low_res, 4)))
        records = _records(points, boxes, scores, multimask, all_masks)
        masks = _save_masks(folder, predictor, low_res, records)
        caption = RANDOM_WEIGHTS_CAPTION if bundle.has_random_weights else None
        _save_png(folder / OVERLAY_PNG, draw_overlay(rgb, masks, points, boxes, caption))
        details = {
            "bundle": bundle.name,
            "model": bundle.manifest["model"].get("name"),
            "rate": bundle.manifest.get("merging", {}).get("rate"),
            "random_weights": bundle.has_random_weights,
            "backend": predictor.backend.name,
            "image": {"path": str(image_path), "width": width, "height": height},
            "prompts": records,
            "timings_ms": {step: round(ms, 3) for step, ms in predictor.timings.items()},
            "notes": notes,
        }
    names = [mask["file"] for record in records for mask in record["masks"]]
    _remove_earlier_masks(folder, names)
    atomic.write_text(folder / PREDICTION_JSON, json.dumps(details, indent=2) + "\n")
    return Prediction(
        folder,
        folder / OVERLAY_PNG,
        folder / PREDICTION_JSON,
        tuple(folder / name for name in names),
        details,
        tuple(notes),
    )


def _which_box(boxes: Sequence[Box]) -> str:
    """Say what the embedding of a prompt-aware bundle belongs to."""
    if not boxes:
        return (
            "this bundle merges less where the prompt's box is, and no box was given: encoded for "
            "the whole photo. Add --box x0,y0,x1,y1"
        )
    if len(boxes) == 1:
        shown = ",".join(f"{value:g}" for value in boxes[0])
        return f"the embedding belongs to box {shown}: another box encodes the image again"
    return (
        f"the image was encoded once for each of the {len(boxes)} boxes: an embedding of this "
        "bundle belongs to one box"
    )


def _prompt_arrays(points: Sequence[Point], boxes: Sequence[Box]) -> dict[str, Any]:
    if points and len(boxes) > 1:
        raise UserError(
            f"{len(points)} points with {len(boxes)} boxes: each box is a prompt of its own, so it "
            "is unclear which box the points belong to. Give one box with the points, or none"
        )
    coords = [(x, y) for x, y, _ in points] if points else None
    labels = [label for _, _, label in points] if points else None
    box = (boxes[0] if points else boxes) if boxes else None
    arrays = {"point_coords": coords, "point_labels": labels, "box": box}
    return {name: None if value is None else np.array(value) for name, value in arrays.items()}


def _records(
    points: Sequence[Point],
    boxes: Sequence[Box],
    scores: np.ndarray,
    multimask: bool,
    all_masks: bool,
) -> list[dict[str, Any]]:
    """Describe each prompt and the masks that will be written for it, ready for JSON."""
    records = []
    for prompt, prompt_scores in enumerate(scores):
        best = int(prompt_scores.argmax())
        masks = [
            {
                "file": f"mask_{prompt:02d}_{index}.png" if all_masks else f"mask_{prompt:02d}.png",
                "score": float(score),
                "best": index == best,
                "output": index + int(multimask),  # of the decoder: 0 single, 1 to 3 multimask
                "index": index,
            }
            for index, score in enumerate(prompt_scores)
            if all_masks or index == best
        ]
        records.append(
            {
                "points": [list(point) for point in points],
                "box": list(boxes[prompt]) if boxes else None,
                "masks": masks,
            }
        )
    return records


def _save_masks(
    folder: Path, predictor: Predictor, low_res: np.ndarray, records: list[dict[str, Any]]
) -> Iterator[np.ndarray]:
    """Write the masks prompt by prompt, complete their records, and yield the best of each."""
    milliseconds = 0.0
    for record, prompt_low_res in zip(records, low_res, strict=True):
        for entry in record["masks"]:
            mask = predictor.upscale(prompt_low_res[entry.pop("index")])
            milliseconds += predictor.timings["upscale"]
            entry["pixels"] = int(mask.sum())
            _save_png(folder / entry["file"], Image.fromarray(mask.astype(np.uint8) * 255))
            if entry["best"]:
                best = mask
        yield best
    predictor.timings["upscale"] = milliseconds


def _save_png(path: Path, picture: Image.Image) -> None:
    with atomic.staged_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _remove_earlier_masks(folder: Path, keep: Sequence[str]) -> None:
    """Delete the masks that an earlier run recorded here and this one has not replaced."""
    try:
        earlier = json.loads((folder / PREDICTION_JSON).read_text(encoding="utf-8"))
        names = [mask["file"] for record in earlier["prompts"] for mask in record["masks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names:
        if name not in keep and _MASK_NAME.fullmatch(str(name)):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
