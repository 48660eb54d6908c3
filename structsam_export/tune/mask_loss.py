"""How far an encoder's masks are from those of the unmerged model at its trained size.

Fixed prompts, five points and four boxes, single masks, in the photo's own pixels, so that encoders
of different input sizes compare. The loss of a photo is 1 - mean IoU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.mask_iou import mask_iou
from structsam_export.predict.preprocessing import ImageGeometry, Photo, read_photo
from structsam_export.predict.upscaling import binary_masks

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.config import MergeConfig
    from structsam_export.bundle.weights_source import ModelSource

#: (x, y) of points and (x0, y0, x1, y1) of boxes, as shares of the photo.
POINTS = ((0.5, 0.5), *((x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)))
BOXES = tuple((x, y, x + 0.4, y + 0.4) for y in (0.05, 0.55) for x in (0.05, 0.55))
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
        """Return the encoder with this merging; one of an earlier call has it as well then."""
        from structsam.apply import apply_merging

        return apply_merging(self.sam, config).image_encoder

    def embedding(self, config: MergeConfig, path: Path) -> np.ndarray:
        """Return the image embedding [1, 256, h, w] of a photo, by PyTorch."""
        import torch

        encoder = self.merged(config)
        with torch.inference_mode():
            found: np.ndarray = encoder(torch.from_numpy(self.photo(path).pixels)).numpy()
        return found

    def masks(self, embedding: np.ndarray, path: Path) -> np.ndarray:
        """Return the masks of the fixed prompts, bool [9, H, W] in the photo's own pixels."""
        import torch

        geometry = self.photo(path).geometry
        with torch.inference_mode():
            low_res, _ = self._decoder(torch.from_numpy(embedding), *self._prompts(geometry))
        return binary_masks(low_res[:, 0].numpy(), geometry)

    def _prompts(self, geometry: ImageGeometry) -> tuple[Tensor, ...]:
        import torch

        height, width = geometry.input_size
        pairs = [[point, (0.0, 0.0)] for point in POINTS]
        pairs += [[box[:2], box[2:]] for box in BOXES]
        coords = torch.tensor(pairs) * torch.tensor([float(width), float(height)])
        labels = torch.tensor([[1.0, -1.0]] * len(POINTS) + [[2.0, 3.0]] * len(BOXES))
        count, (rows, columns) = len(pairs), self._decoder.embedding_size
        return coords, labels, torch.zeros(count, 1, 4 * rows, 4 * columns), torch.zeros(count)


class MaskJudge:
    """Keeps the masks that are to be drawn, and one model at a time."""

    def __init__(self, source: ModelSource, unmerged: MergeConfig) -> None:
        self._source, self._unmerged = source, unmerged
        self._size: int | None = None
        self._model: ModelAtSize | None = None
        self._expected: dict[Path, tuple[np.ndarray, tuple[int, ...]]] = {}

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
                masks = model.masks(model.embedding(self._unmerged, photo), photo)
                self._expected[photo] = np.packbits(masks), masks.shape

    def loss(self, model: ModelAtSize, embedding: np.ndarray, photo: Path) -> float:
        """Return 1 - mean IoU of the masks of an embedding; `look_at` comes first."""
        packed, shape = self._expected[photo]
        expected = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
        return float(1 - mask_iou(model.masks(embedding, photo), expected).mean())
