"""A photo -> a mask of everything in it, as `SamAutomaticMaskGenerator.generate`.

The same steps with the same numbers, in another order where that saves work: a mask is enlarged
to the photo only when its predicted IoU is good enough, and only where it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from structsam.errors import UserError
from structsam.mask_runs import mask_of, runs_of
from structsam_export.predict.everything.coco_masks import coco_rle, uncompressed_rle
from structsam_export.predict.everything.crops import Crop, crop_boxes, cut_by_crop
from structsam_export.predict.everything.nms import box_nms
from structsam_export.predict.everything.regions import without_small_regions
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.upscaling import mask_and_areas

Progress = Callable[[int, int], None]


class Segmenter(Protocol):
    """What of a `Predictor` is used."""

    timings: dict[str, float]

    @property
    def geometry(self) -> ImageGeometry | None:
        """Size and place of the image that is set."""

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image."""

    def predict_low_res(
        self, point_coords: np.ndarray, point_labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [P, 3] and low-resolution logits [P, 3, h, w]."""


@dataclass(frozen=True)
class Found:
    """Masks that were found, in pixels of the photo.

    Args:
        runs: see `runs_of`; one array a mask.
        boxes: int64 [N, 4], (x0, y0, x1, y1) of the first and the last pixels; zeros if empty.
        scores: the predicted IoU, float32 [N].
        stability: float32 [N].
        points: the prompt, float64 [N, 2].
        crops: int64 [N, 4], the crop that a mask was found in.
    """

    runs: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    points: np.ndarray
    crops: np.ndarray

    def take(self, kept: np.ndarray) -> Found:
        """Return some of the masks, in this order."""
        return Found(*(getattr(self, column.name)[kept] for column in fields(self)))

    @staticmethod
    def join(parts: Iterable[Found]) -> Found:
        """Return all masks together."""
        columns = ([getattr(part, column.name) for part in parts] for column in fields(Found))
        return Found(*map(np.concatenate, columns))


def masks_of_everything(
    segmenter: Segmenter,
    image: np.ndarray | None,
    settings: EverythingSettings,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Find every mask; see `Predictor.everything`.

    Args:
        image: uint8 RGB [H, W, 3]; None for the one that is set, which may not be cropped.
        progress: is told how many of all points are done.
    """
    settings.require_packages()
    if image is None:
        if settings.crop_n_layers:
            raise UserError("crops are encoded anew, so they need the photo: pass the image")
        if segmenter.geometry is None:
            raise UserError("no image is set. Pass the image, or call predictor.set_image first")
        size = segmenter.geometry.original_size
    else:
        size = image.shape[0], image.shape[1]
    crops = crop_boxes(*size, settings.crop_n_layers, settings.crop_overlap_ratio)
    grids = settings.grids()
    course = _Course(segmenter, progress, sum(len(grids[layer]) for layer, _ in crops))
    parts = []
    for layer, crop in crops:
        if image is not None:
            x0, y0, x1, y1 = crop
            with course.summing():
                segmenter.set_image(image[y0:y1, x0:x1])
        found = _found_in_crop(segmenter, grids[layer], crop, size, settings, course)
        parts.append(found.take(box_nms(found.boxes, found.scores, settings.box_nms_thresh)))
    found = Found.join(parts)
    if len(crops) > 1:
        corners = found.crops
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        found = found.take(box_nms(found.boxes, 1 / areas, settings.crop_nms_thresh))
    if settings.min_mask_region_area:
        found = _mended(found, size, settings)
    segmenter.timings.update(course.milliseconds)
    return [_record(found, index, size, settings) for index in range(len(found.runs))]


class _Course:
    """Tells how many points are done, and sums up the milliseconds of every step."""

    def __init__(self, segmenter: Segmenter, progress: Progress, total: int) -> None:
        self.milliseconds = {"preprocess": 0.0, "encode": 0.0, "decode": 0.0, "upscale": 0.0}
        self._segmenter, self._progress, self._total, self._done = segmenter, progress, total, 0

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Add what the segmenter says that the block took."""
        timings = self._segmenter.timings
        timings.clear()
        yield
        for step, spent in timings.items():
            self.milliseconds[step] += spent

    @contextmanager
    def upscaling(self) -> Iterator[None]:
        """Add the time of the block to `upscale`."""
        start = time.perf_counter()
        yield
        self.milliseconds["upscale"] += (time.perf_counter() - start) * 1e3

    def add(self, count: int) -> None:
        """Say that so many more points are done."""
        self._done += count
        self._progress(self._done, self._total)


def _found_in_crop(
    segmenter: Segmenter,
    grid: np.ndarray,
    crop: Crop,
    size: tuple[int, int],
    settings: EverythingSettings,
    course: _Course,
) -> Found:
    """Decode every point of a crop, and keep the masks that are good enough."""
    x0, y0, x1, y1 = crop
    points = grid * np.array([x1 - x0, y1 - y0])
    masks: list[_Mask] = []
    for start in range(0, len(points), settings.points_per_batch):
        batch = points[start : start + settings.points_per_batch]
        with course.summing():
            scores, low_res = segmenter.predict_low_res(batch[:, None], np.ones((len(batch), 1)))
        assert segmenter.geometry is not None
        least = settings.pred_iou_thresh or -np.inf
        with course.upscaling():
            for prompt, output in np.argwhere(scores > least):
                seen = _looked_at(low_res[prompt, output], segmenter.geometry, crop, size, settings)
                if seen is not None:
                    masks.append((*seen, scores[prompt, output], batch[prompt] + [x0, y0]))
        course.add(len(batch))
    runs = np.empty(len(masks), object)  # arrays of different lengths
    for index, mask in enumerate(masks):
        runs[index] = mask[0]
    return Found(
        runs,
        np.array([mask[1] for mask in masks], np.int64).reshape(-1, 4),
        np.array([mask[3] for mask in masks], np.float32),
        np.array([mask[2] for mask in masks], np.float32),
        np.array([mask[4] for mask in masks], np.float64).reshape(-1, 2),
        np.tile(np.array(crop, np.int64), (len(masks), 1)),
    )


#: Runs, box, stability, score, point.
_Mask = tuple[np.ndarray, np.ndarray, np.float32, np.float32, np.ndarray]


def _looked_at(
    low_res: np.ndarray,
    geometry: ImageGeometry,
    crop: Crop,
    size: tuple[int, int],
    settings: EverythingSettings,
) -> tuple[np.ndarray, np.ndarray, np.float32] | None:
    """Return runs, box and stability of a mask; None when it is not stable, or the crop cut it."""
    mask, inner, outer = mask_and_areas(low_res, geometry, settings.stability_score_offset)
    stability = np.float32(inner) / np.float32(max(outer, 1))
    if stability < np.float32(settings.stability_score_thresh):
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        rows = columns = np.zeros(1, np.int64)
    (top, bottom), (left, right) = rows[[0, -1]], columns[[0, -1]]
    own = np.array([[left, top, right, bottom]])
    box = own + np.array([crop[0], crop[1]] * 2)
    if cut_by_crop(box, crop, *size).any():
        return None
    part = mask[top : bottom + 1, left : right + 1]
    return runs_of(part, crop[1] + top, crop[0] + left, size), box[0], stability


def _mended(found: Found, size: tuple[int, int], settings: EverythingSettings) -> Found:
    """Mend small regions; of masks that became alike, those that needed no mending stay."""
    runs, boxes = found.runs.copy(), found.boxes.copy()
    untouched = np.ones(len(runs))
    for index in range(len(runs)):
        mended = without_small_regions(mask_of(runs[index], size), settings.min_mask_region_area)
        if mended is not None:
            untouched[index] = 0
            rows, columns = (np.flatnonzero(mended.any(axis=axis)) for axis in (1, 0))
            boxes[index] = [columns[0], rows[0], columns[-1], rows[-1]]
            runs[index] = runs_of(mended, 0, 0, size)
    mended_all = Found(runs, boxes, found.scores, found.stability, found.points, found.crops)
    threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
    return mended_all.take(box_nms(boxes, untouched, threshold))


def _record(
    found: Found, index: int, size: tuple[int, int], settings: EverythingSettings
) -> dict[str, Any]:
    runs = found.runs[index]
    forms: Mapping[str, Callable[..., Any]] = {
        "binary_mask": mask_of,
        "uncompressed_rle": uncompressed_rle,
        "coco_rle": coco_rle,
    }
    return {
        "segmentation": forms[settings.output_mode](runs, size),
        "area": int(runs[1::2].sum()),
        "bbox": _corner_and_size(found.boxes[index]),
        "predicted_iou": float(found.scores[index]),
        "point_coords": [found.points[index].tolist()],
        "stability_score": float(found.stability[index]),
        "crop_box": _corner_and_size(found.crops[index]),
    }


def _corner_and_size(box: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
