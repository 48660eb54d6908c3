"""How far an encoder's masks are from those of the unmerged model at its trained size.

Prompts are boxes round the objects that the unmerged model is surest of; masks are compared in the
photo's own pixels, so that encoders of different input sizes compare. The loss of a photo is
1 - mean IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.mask_iou import mask_iou
from structsam_export.bundle.features import Features
from structsam_export.predict.hq_masks import every_mask
from structsam_export.predict.preprocessing import Photo, read_photo
from structsam_export.predict.upscaling import binary_masks
from structsam_export.tune.sure_objects import box_of, grid_points, sure_objects

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam_export.bundle.weights_source import ModelSource

#: (x0, y0, x1, y1) as shares of the photo.
Box = tuple[float, float, float, float]
#: A photo's boxes at most; points of the grid, per side, that look for their objects.
MOST_BOXES, GRID_SIDE = 6, 5
#: What is asked for in a photo where too few objects are found.
FIXED_BOXES: tuple[Box, ...] = tuple(
    (x, y, x + 0.4, y + 0.4) for y in (0.05, 0.55) for x in (0.05, 0.55)
)
_FEWEST_OBJECTS = 2
_PHOTOS_KEPT = 16  # inputs of 12 MB at 1024 pixels


class ModelAtSize:
    """An unmerged model at one input size, which merges as it is asked."""

    def __init__(self, source: ModelSource, image_size: int | None) -> None:
        from structsam_export.graph.modules import DecoderModule

        sized = replace(source, image_size=image_size, embedding="native")
        self.sam, self.preprocessing = sized.load(), sized.spec.preprocessing
        self._decoder = DecoderModule(self.sam)
        self.photo = lru_cache(_PHOTOS_KEPT)(self._photo)

    def _photo(self, path: Path) -> Photo:
        return read_photo(path, self.preprocessing)

    def merged(self, config: MergeConfig) -> Any:
        """Return the model with this merging; one of an earlier call has it as well then."""
        from structsam.apply import apply_merging

        return apply_merging(self.sam, config)

    def features(self, config: MergeConfig, path: Path) -> Features:
        """Return what the decoder takes of a photo, by PyTorch: maps float32 [1, C, h, w]."""
        import torch

        from structsam_export.graph.modules import EncoderModule

        module = EncoderModule(self.merged(config))
        with torch.inference_mode():
            found = module.features(torch.from_numpy(self.photo(path).pixels))
        return {name: map_.numpy() for name, map_ in found.items()}

    def sure_boxes(self, features: Features, path: Path) -> tuple[Box, ...]:
        """Return boxes round the objects that the model is surest of, else fixed ones."""
        points = grid_points(GRID_SIDE)
        padding = np.zeros_like(points)
        low_res, scores = self._decode(
            features, path, np.stack([points, padding], 1), [[1.0, -1.0]] * len(points)
        )
        low_res, scores = low_res[:, 1:], scores[:, 1:]  # the first is for several prompts
        rows, columns = self.photo(path).geometry.inside(low_res.shape[-1])
        found = islice(sure_objects(scores, low_res, (rows, columns)), MOST_BOXES)
        boxes = tuple(box_of(low_res[p, o, :rows, :columns] > 0) for p, o in found)
        return boxes if len(boxes) >= _FEWEST_OBJECTS else FIXED_BOXES

    def masks(self, features: Features, path: Path, boxes: Sequence[Box]) -> np.ndarray:
        """Return the masks of boxes, bool [boxes, H, W] in the photo's own pixels."""
        corners = np.array(boxes).reshape(-1, 2, 2)
        low_res, _ = self._decode(features, path, corners, [[2.0, 3.0]] * len(boxes))
        return binary_masks(low_res[:, 0], self.photo(path).geometry)

    def _decode(
        self, features: Features, path: Path, coords: np.ndarray, labels: list[list[float]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits [P, 4, 4h, 4w] and scores [P, 4]; `coords` are shares of the photo."""
        import torch

        height, width = self.photo(path).geometry.input_size
        count, (rows, columns) = len(coords), self._decoder.embedding_size
        prompts = (
            torch.from_numpy((coords * [width, height]).astype(np.float32)),
            torch.tensor(labels),
            torch.zeros(count, 1, 4 * rows, 4 * columns),
            torch.zeros(count),
        )
        maps = {name: torch.from_numpy(array) for name, array in features.items()}
        with torch.inference_mode():
            found = self._decoder.outputs(maps, prompts)
        drawn = {name: value.numpy() for name, value in found.items()}
        return every_mask(drawn)[:, :4], drawn["iou_predictions"]


@dataclass(frozen=True, eq=False)
class _Expected:
    """Masks that are to be drawn, as bits: bool [boxes, H, W] is `shape`."""

    boxes: tuple[Box, ...]
    bits: np.ndarray
    shape: tuple[int, ...]

    @property
    def masks(self) -> np.ndarray:
        """The masks, bool."""
        count = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.shape).astype(bool)


class MaskJudge:
    """Keeps the masks that are to be drawn, and one model at a time."""

    def __init__(self, source: ModelSource, unmerged: MergeConfig) -> None:
        self._source, self._unmerged = source, unmerged
        self._size: int | None = None
        self._model: ModelAtSize | None = None
        self._expected: dict[Path, _Expected] = {}

    def model(self, image_size: int | None) -> ModelAtSize:
        """Return the model at that size, loading it where another one was asked for before."""
        if self._model is None or image_size != self._size:
            self._model = None  # the memory of one, not of two
            self._model, self._size = ModelAtSize(self._source, image_size), image_size
        return self._model

    def look_at(self, photos: list[Path]) -> None:
        """Draw what is to be drawn on these photos."""
        for photo in photos:
            if photo not in self._expected:
                model = self.model(None)
                features = model.features(self._unmerged, photo)
                boxes = model.sure_boxes(features, photo)
                masks = model.masks(features, photo, boxes)
                self._expected[photo] = _Expected(boxes, np.packbits(masks), masks.shape)

    def loss(self, model: ModelAtSize, features: Features, photo: Path) -> float:
        """Return 1 - mean IoU of the masks of what an encoder gave; `look_at` comes first."""
        expected = self._expected[photo]
        masks = model.masks(features, photo, expected.boxes)
        return float(1 - mask_iou(masks, expected.masks).mean())
