"""The worst cases of an evaluation as pictures: truth, the unmerged mask, the merged mask."""

from __future__ import annotations

import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from structsam.errors import UserError

if TYPE_CHECKING:
    from structsam.evaluation.summary import Summary

#: The metric that says which cases are worst.
METRIC = "iou"
#: IoU that a mask must have lost to be shown; less cannot be seen in a picture.
LEAST_LOSS = 0.05
_SIDE, _GAP, _STRIP = 320, 8, 26
_MARGIN = 0.2  # around the masks, as a share of their box
_SMALLEST_CROP = 48  # pixels of the photo
_BLANK = 232
_OPACITY = 0.5
_TRUTH, _UNMERGED, _MERGED = (20, 170, 80), (30, 110, 240), (240, 110, 0)
_INK, _PAPER = (28, 35, 48), (255, 255, 255)


@dataclass(frozen=True)
class WorstCase:
    """A mask that lost IoU against the unmerged model.

    Args:
        run: label of the merged run.
        before, after: IoU with the truth, unmerged and merged, in 0..1.
        size: (H, W) of the image.
        truth, unmerged, merged: masks as COCO counts.
    """

    image_id: str
    object_id: str
    category: str
    run: str
    before: float
    after: float
    size: tuple[int, int]
    truth: str
    unmerged: str
    merged: str

    @property
    def loss(self) -> float:
        """IoU lost."""
        return self.before - self.after

    @property
    def title(self) -> str:
        """Say which mask it is, and what happened to it."""
        category = f" ({self.category})" if self.category else ""
        return (
            f"{self.image_id}, object {self.object_id}{category}, {self.run}: "
            f"IoU {self.before:.3f} unmerged, {self.after:.3f} merged"
        )


def worst_cases(summary: Summary, count: int) -> list[WorstCase]:
    """Return up to `count` masks that lost at least `LEAST_LOSS`, each object once, worst first.

    Runs take turns, so that one bad run does not fill the gallery; each gives its worst first.
    """
    from structsam.evaluation.read_results import read_rows

    base_run = summary.baseline
    if base_run is None or count < 1:
        return []
    base = read_rows(summary.folder, base_run.name, with_rle=True)
    if base is None or METRIC not in base.metrics:
        return []
    queues = []
    for run in summary.runs:
        rows = None if run.baseline else read_rows(summary.folder, run.name, with_rle=True)
        if rows is not None and METRIC in rows.metrics:
            queues.append(_losses(rows, base, run.label, count * max(1, len(summary.runs) - 1)))
    return sorted(_in_turns(queues, count), key=lambda case: -case.loss)


def _in_turns(queues: Sequence[Sequence[WorstCase]], count: int) -> list[WorstCase]:
    """Take the next of each queue in turn, skipping objects that were taken before."""
    found: dict[tuple[str, str], WorstCase] = {}
    waiting = [iter(queue) for queue in queues]
    while waiting and len(found) < count:
        for queue in list(waiting):
            fresh = (c for c in queue if (c.image_id, c.object_id) not in found)
            case = next(fresh, None)
            if case is None:
                waiting.remove(queue)
            elif len(found) < count:
                found[case.image_id, case.object_id] = case
    return list(found.values())


def _losses(rows: Any, base: Any, label: str, most: int) -> list[WorstCase]:
    """The `most` largest losses of one run."""
    from structsam.evaluation.run_metrics import pair

    pairs = pair(rows, base)
    mine, theirs = rows.metrics.index(METRIC), base.metrics.index(METRIC)
    candidates = (
        (base.values[j, theirs] - rows.values[i, mine], i, j)
        for i, j in zip(pairs.run.tolist(), pairs.base.tolist(), strict=True)
    )
    worst = heapq.nlargest(most, (c for c in candidates if c[0] >= LEAST_LOSS), key=lambda c: c[0])
    return [
        WorstCase(
            rows.image_ids[rows.image[i]],
            rows.objects[i],
            rows.categories[i],
            label,
            float(base.values[j, theirs]),
            float(rows.values[i, mine]),
            rows.sizes[i],
            rows.truth_rle[i],
            base.rle[j],
            rows.rle[i],
        )
        for _, i, j in worst
    ]


def draw_gallery(
    summary: Summary, cases: Sequence[WorstCase]
) -> tuple[list[tuple[WorstCase, bytes]], str]:
    """Draw each case as a JPEG of three panels.

    Returns:
        the cases with their pictures, and why photos are missing (empty when none is).
    """
    photos = _Photos(summary.facts["dataset"])
    drawn = [(case, _jpeg(draw_case(case, photos.of(case)))) for case in cases]
    return drawn, photos.note


class _Photos:
    """Photos of a dataset, each loaded once in a row; masks are drawn alone where there is none."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.note = ""
        self._last: tuple[str, np.ndarray | None] = ("", None)
        self._dataset: Any = None
        root = Path(str(facts.get("root", "")))
        advice = "run `report` in the folder in which `evaluate` ran"
        if not root.is_dir():
            self.note = f"the dataset is not at {root}; {advice}"
            return
        try:
            from structsam.evaluation.datasets import open_dataset

            self._dataset = open_dataset(str(facts.get("name")), root)
        except (UserError, OSError, ImportError) as error:
            self.note = f"the dataset cannot be opened ({error})"

    def of(self, case: WorstCase) -> np.ndarray | None:
        """Return RGB uint8 [H, W, 3], or None."""
        if self._dataset is not None and self._last[0] != case.image_id:
            self._last = (case.image_id, self._load(case.image_id))
        photo = self._last[1]
        if photo is not None and photo.shape[:2] != tuple(case.size):
            self.note = f"the photo of {case.image_id} has another size than its masks"
            return None
        return photo

    def _load(self, image_id: str) -> np.ndarray | None:
        try:
            photo: np.ndarray = self._dataset.load(image_id).image
        except (UserError, OSError, KeyError) as error:
            self.note = f"some photos cannot be loaded ({error})"
            return None
        return photo


def draw_case(case: WorstCase, photo: np.ndarray | None) -> Image.Image:
    """Draw three panels side by side: the photo with the truth's outline, and the two masks.

    Args:
        photo: RGB uint8 [H, W, 3], or None to draw masks on grey.
    """
    from structsam.evaluation.mask_rle import decode

    truth, before, after = (decode(m, case.size) for m in (case.truth, case.unmerged, case.merged))
    if photo is None:
        photo = np.full((*case.size, 3), _BLANK, np.uint8)
    crop = crop_around(truth | before | after)
    panels = (
        ("truth", None, _TRUTH),
        (f"unmerged: IoU {case.before:.3f}", before, _UNMERGED),
        (f"{case.run}: IoU {case.after:.3f}", after, _MERGED),
    )
    pictures = [
        _panel(photo[crop], truth[crop], None if mask is None else mask[crop], color)
        for _, mask, color in panels
    ]
    height = _STRIP + max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (3 * _SIDE + 2 * _GAP, height), _PAPER)
    for order, (picture, (title, *_)) in enumerate(zip(pictures, panels, strict=True)):
        left = order * (_SIDE + _GAP)
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, _STRIP))
        _write(sheet, left, title)
    return sheet


def crop_around(mask: np.ndarray) -> tuple[slice, slice]:
    """Return (rows, columns) of a square around a bool mask [H, W], as far as the image goes.

    A mask without a pixel takes the whole image.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(_SMALLEST_CROP, round(float(longest) * (1 + 2 * _MARGIN)))
    parts = []
    for found, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        middle = (int(found[0]) + int(found[-1]) + 1) / 2
        start = min(max(0, round(middle - side / 2)), max(0, length - side))
        parts.append(slice(start, min(length, start + side)))
    return parts[0], parts[1]


def _panel(
    photo: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, color: tuple[int, int, int]
) -> Image.Image:
    """The crop, enlarged or shrunk to the panel, with `mask` filled and the truth outlined."""
    scale = _SIDE / max(photo.shape[:2])
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    picture = Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.Resampling.BILINEAR)
    if mask is not None:
        inside = _resized(mask, size)
        picture.paste(color, (0, 0), inside.point(lambda value: round(value * _OPACITY)))
    border = _resized(truth, size)
    for width, tint in ((5, _PAPER), (3, _TRUTH)):  # green on white can be seen on any photo
        wide = border.filter(ImageFilter.MaxFilter(width))
        thin = border.filter(ImageFilter.MinFilter(width))
        line = Image.fromarray(np.asarray(wide) - np.asarray(thin))
        picture.paste(tint, (0, 0), line)
    return picture


def _resized(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    return whole.resize(size, Image.Resampling.BILINEAR).point(lambda v: 255 if v > 127 else 0)


def _write(sheet: Image.Image, left: int, title: str) -> None:
    """Write a panel's title above it, as large as its width allows."""
    font = ImageFont.load_default(15)
    for size in range(15, 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(title) <= _SIDE:
            break
    draw = ImageDraw.Draw(sheet)
    draw.text((left + _SIDE / 2, _STRIP / 2), title, fill=_INK, font=font, anchor="mm")


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=88)
    return stream.getvalue()
