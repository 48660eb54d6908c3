"""What the service found: a photo's size and place, masks of prompts, masks of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.upscaling import binary_masks


@dataclass(frozen=True)
class AddedImage:
    """A photo that is encoded now.

    Args:
        geometry: its size, and its place in the encoder's input.
        cached: whether it had been encoded before, here or by `segment`.
        encode_ms: of preprocessing and encoder; 0 where it was cached.
    """

    image_id: str
    geometry: ImageGeometry
    cached: bool
    encode_ms: float


@dataclass(frozen=True)
class FoundMasks:
    """Masks of P prompts, small: many large ones would not fit in memory at once.

    Args:
        scores: float32 [P, C].
        low_res: float32 [P, C, h, w] logits.
        geometry: of the photo.
        decode_ms: of the decoder's call, which other requests may have shared.
    """

    scores: np.ndarray
    low_res: np.ndarray
    geometry: ImageGeometry
    decode_ms: float

    def mask(self, prompt: int, place: int) -> np.ndarray:
        """Return one mask in the size of the photo, bool [H, W]."""
        return binary_masks(self.low_res[prompt, place], self.geometry)


@dataclass(frozen=True)
class FoundEverything:
    """Masks of everything in a photo.

    Args:
        records: of `Predictor.everything`, with COCO's run lengths.
        size: (height, width) of the photo, which may have left meanwhile.
        spent_ms: of all of it.
    """

    records: list[dict[str, Any]]
    size: tuple[int, int]
    spent_ms: float
