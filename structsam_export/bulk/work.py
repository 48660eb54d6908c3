"""What is done to one photo, step by step; the steps of several photos run beside each other."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam.mask_runs import mask_of, runs_of
from structsam_export.bulk.boxes import with_usable_boxes
from structsam_export.bulk.pipeline import Stopped
from structsam_export.bulk.task import OBJECT, Task
from structsam_export.bundle import atomic
from structsam_export.bundle.features import Features
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import photo_id, save_embedding, to_half
from structsam_export.predict.everything.coco_masks import coco_rle, load_mask_tools
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.notes import RANDOM_WEIGHTS_CAPTION
from structsam_export.predict.overlay import draw_overlay
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.preprocessing import ImageGeometry, Photo, read_photo

#: Bytes of a file's name: file systems take 255, of which a temporary name needs some 20.
_LONGEST_NAME, _KEPT_OF_NAME = 200, 80
MASKS, OVERLAYS, EMBEDDINGS = "masks", "overlays", "embeddings"


@dataclass(frozen=True)
class Wanted:
    """What is to be found and kept.

    Args:
        everything: how masks of everything are found; None for the source's prompts.
        masks: a PNG for every mask.
        overlays: a picture for every photo.
        embeddings: FP16 embeddings for later prompts.
    """

    everything: EverythingSettings | None = None
    masks: bool = False
    overlays: bool = False
    embeddings: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {**vars(self), "everything": self.everything and self.everything.to_dict()}


@dataclass
class Item:
    """One photo on its way; what a later step does not need is let go.

    Args:
        problem: why there are no masks.
        notes: what a user should know of masks that there are.
    """

    task: Task
    problem: str | None = None
    notes: list[str] = field(default_factory=list)
    photo: Photo | None = None
    features: Features | None = None
    half: Features | None = None
    photo_id: str = ""
    annotations: list[dict[str, Any]] | None = None
    runs: list[np.ndarray] | None = None


class Work:
    """The steps: `read`, `encode`, `decode`, `write`.

    Each predictor is used by one thread only. Where an embedding belongs to a box or to a crop,
    `encode` does nothing, and `decode` encodes.

    Args:
        encoding: runs the encoder.
        decoding: runs the decoder.
        out: the folder of all that is written.

    Attributes:
        stop: when it is set, masks of everything break off, and `decode` raises `Stopped`.
    """

    def __init__(
        self, bundle: Bundle, wanted: Wanted, encoding: Predictor, decoding: Predictor, out: Path
    ) -> None:
        self._bundle, self._wanted, self._out = bundle, wanted, out
        self._encoding, self._decoding = encoding, decoding
        self.stop = threading.Event()
        crops = wanted.everything is not None and wanted.everything.crop_n_layers > 0
        self._encodes_ahead = not (bundle.takes_box or crops)

    def open(self) -> None:
        """Open the networks: what goes wrong there is no photo's problem."""
        self._encoding.open(("encoder",) if self._encodes_ahead else ())
        self._decoding.open(("decoder",) if self._encodes_ahead else ("encoder", "decoder"))

    def read(self, task: Task) -> Item:
        """Read and preprocess a photo, and check its prompts."""
        item = Item(task)
        with _problem_of(item):
            item.photo = read_photo(task.path, self._bundle.preprocessing, item.notes.append)
            if self._wanted.embeddings:
                item.photo_id = photo_id(task.path.read_bytes())
            if self._asks(task):
                item.task, left_out = with_usable_boxes(task, item.photo.geometry)
                item.notes += left_out
        return item

    def encode(self, item: Item) -> Item:
        """Compute what the decoder takes."""
        needed = self._wanted.everything or self._wanted.embeddings or self._asks(item.task)
        if item.problem or not needed or not self._encodes_ahead:
            return item
        assert item.photo is not None
        with _problem_of(item):
            self._encoding.set_preprocessed(item.photo.pixels, item.photo.geometry)
            found = self._encoding.get_features()
            item.features = {name: array.copy() for name, array in found.items()}
            if self._wanted.embeddings:
                item.half = to_half(item.features)
        return item

    def decode(self, item: Item) -> Item:
        """Find the masks."""
        if item.problem:
            return item
        assert item.photo is not None
        item.annotations, item.runs = [], []
        with _problem_of(item):
            if self._wanted.everything:
                self._find_everything(item, self._wanted.everything)
            elif self._asks(item.task):
                self._find_prompted(item)
        return item

    def write(self, item: Item) -> dict[str, Any]:
        """Write the files of a photo, and return the line that says that it is done."""
        if item.problem:
            return {"name": item.task.name, "problem": item.problem}
        self._write_files(item)  # what goes wrong here would go wrong with the next one, too
        assert item.photo is not None
        height, width = item.photo.geometry.original_size
        facts = {"name": item.task.name, "width": width, "height": height}
        notes = {"notes": item.notes} if item.notes else {}
        return {**facts, **notes, "annotations": item.annotations}

    def _asks(self, task: Task) -> bool:
        return not self._wanted.everything and bool(task.points or task.boxes)

    def _set(self, item: Item) -> ImageGeometry:
        assert item.photo is not None
        if item.features is None:
            self._decoding.set_preprocessed(item.photo.pixels, item.photo.geometry)
        else:
            self._decoding.set_features(item.features, item.photo.geometry.original_size)
        return item.photo.geometry

    def _find_everything(self, item: Item, settings: EverythingSettings) -> None:
        assert item.photo is not None
        image = None
        if settings.crop_n_layers:
            image = item.photo.rgb
        else:
            self._set(item)
        mode = replace(settings, output_mode="uncompressed_rle")
        for record in self._decoding.everything(image, progress=self._go_on, **vars(mode)):
            runs = np.array(record.pop("segmentation")["counts"])
            scores = {k: record[k] for k in ("predicted_iou", "stability_score", "point_coords")}
            self._add(item, runs, {"category_id": OBJECT["id"], **scores})

    def _go_on(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Stopped(f"stopped after {done} of {total} points")

    def _find_prompted(self, item: Item) -> None:
        prompts = item.task.prompts()
        size = self._set(item).original_size
        scores, low_res = self._decoding.predict_asked(prompts)
        for index, own in enumerate(scores):
            best = int(own.argmax())
            mask = self._decoding.upscale(low_res[index, best])
            labels = item.task.labels[index] if item.task.labels else {"category_id": OBJECT["id"]}
            self._add(
                item, runs_of(mask, 0, 0, size), {**labels, "predicted_iou": float(own[best])}
            )

    def _add(self, item: Item, runs: np.ndarray, facts: dict[str, Any]) -> None:
        assert item.photo is not None and item.annotations is not None and item.runs is not None
        segmentation = coco_rle(runs, item.photo.geometry.original_size)
        item.runs.append(runs)
        item.annotations.append(
            {
                **facts,
                "segmentation": segmentation,
                "bbox": [int(side) for side in load_mask_tools().toBbox(segmentation)],
                "area": int(runs[1::2].sum()),
                "iscrowd": 0,
            }
        )

    def _write_files(self, item: Item) -> None:
        assert item.photo is not None and item.runs is not None
        size, name = item.photo.geometry.original_size, safe_name(item.task.name)
        if item.half is not None:
            file = self._out / EMBEDDINGS / f"{name}.npz"
            save_embedding(file, self._bundle, item.half, size, item.photo_id)
        for index, runs in enumerate(item.runs if self._wanted.masks else ()):
            pixels = mask_of(runs, size).astype(np.uint8) * 255
            file = self._out / MASKS / name / f"mask_{index:04d}.png"
            _save_png(file, Image.fromarray(pixels))
        if self._wanted.overlays:
            large_first = sorted(item.runs, key=lambda runs: -int(runs[1::2].sum()))
            masks: Iterator[np.ndarray] = (mask_of(runs, size) for runs in large_first)
            prompts = () if self._wanted.everything else item.task.boxes
            caption = RANDOM_WEIGHTS_CAPTION if self._bundle.has_random_weights else None
            picture = draw_overlay(item.photo.rgb, masks, boxes=prompts, caption=caption)
            _save_png(self._out / OVERLAYS / f"{name}.png", picture)


def safe_name(name: str) -> str:
    """Return where a photo's files lie below a folder: its name, unless that leads elsewhere.

    A name so long that an ending would be too much for a file system keeps only its end.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or ":" in name
    last = os.fsencode(path.name)
    if not outside and len(last) <= _LONGEST_NAME:
        return path.as_posix()
    end = path.name if len(last) <= _LONGEST_NAME else last[-_KEPT_OF_NAME:].decode(errors="ignore")
    own = f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}-{end}"
    return own if outside else path.with_name(own).as_posix()


@contextmanager
def _problem_of(item: Item) -> Iterator[None]:
    """Keep a `UserError` of the block as the item's problem."""
    try:
        yield
    except UserError as error:
        item.problem = str(error)


def _save_png(file: Path, picture: Image.Image) -> None:
    with atomic.staged_file(file) as temporary:
        picture.save(temporary, format="PNG", compress_level=1)
