"""How an image and a mask reach a predictor, and how its logits come back: named, and recorded.

The numbers of two protocols cannot be compared: the same SAM scores several points apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from structsam.errors import UserError

#: Side of SAM's input in pixels.
INPUT_SIDE = 1024

Box = tuple[float, float, float, float]


class MaskPredictor(Protocol):
    """What is evaluated: `SamPredictor`'s methods, for many prompts in one call."""

    timings: dict[str, float]

    def set_image(self, image: np.ndarray) -> None:
        """Encode a uint8 RGB image [H, W, 3]."""

    def predict_low_res(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [P, C] and logits [P, C, 256, 256] of P prompts."""

    def upscale(self, low_res: np.ndarray) -> np.ndarray:
        """Bring logits [..., 256, 256] to the image given: bool [..., H, W]."""


class EvaluationProtocol(ABC):
    """Preparation of the image, the prompt's box, and the mask at the image's own size."""

    name: ClassVar[str]
    title: ClassVar[str]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return what the predictor is given, uint8 [H', W', 3], for an image [H, W, 3]."""
        return image

    def prompt_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the bool mask [H', W'] that prompts are taken from, for a mask [H, W]."""
        return mask

    @abstractmethod
    def box(self, prompt_mask: np.ndarray) -> Box:
        """Return (x0, y0, x1, y1) around `prompt_mask`, in pixels of the prepared image."""

    @abstractmethod
    def finish(
        self, predictor: MaskPredictor, low_res: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Turn logits [P, 256, 256] into bool masks [P, H, W], `size` = (H, W)."""


class SamProtocol(EvaluationProtocol):
    """SAM's own use: long side to 1024, padded; tight box; logits upsampled in its two steps."""

    name = "sam"
    title = "SAM: long side 1024, padded, tight box"

    def box(self, prompt_mask: np.ndarray) -> Box:
        """Return the tight box, exclusive on the right and bottom."""
        return tight_box(prompt_mask)

    def finish(
        self, predictor: MaskPredictor, low_res: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Upscale as `Sam.postprocess_masks` does."""
        return predictor.upscale(low_res)


class HqSamProtocol(EvaluationProtocol):
    """HQ-SAM's evaluation (`train.py`): image and label straight to 1024 x 1024, aspect not kept.

    The box is that of the resized label above 128 with inclusive corners, one mask per prompt, and
    the logits go in one bilinear step to the label's own size.
    """

    name = "hqsam"
    title = "HQ-SAM: resized to 1024 x 1024, box of the resized label"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize bilinearly without anti-aliasing, as `F.interpolate` does."""
        return bilinear(image, (INPUT_SIDE, INPUT_SIDE))

    def prompt_mask(self, mask: np.ndarray) -> np.ndarray:
        """Resize the label of 0 and 255 in the same way, and keep what exceeds 128."""
        label = mask.astype(np.float32) * 255
        found: np.ndarray = bilinear(label, (INPUT_SIDE, INPUT_SIDE)) > 128
        return found

    def box(self, prompt_mask: np.ndarray) -> Box:
        """Return the box of the outermost pixels, both inclusive."""
        return inclusive_box(prompt_mask)

    def finish(
        self, predictor: MaskPredictor, low_res: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Upsample the logits, then threshold at 0."""
        return np.stack([bilinear(plane, size) > 0 for plane in low_res])


class MedSamProtocol(EvaluationProtocol):
    """MedSAM's (`MedSAM_Inference.py`): cubic resize to 1024 x 1024, probabilities upsampled."""

    name = "medsam"
    title = "MedSAM: resized to 1024 x 1024, inclusive box, sigmoid before upsampling"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize with Pillow's bicubic; its difference from scikit-image's cubic is small."""
        size = (INPUT_SIDE, INPUT_SIDE)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def prompt_mask(self, mask: np.ndarray) -> np.ndarray:
        """Resize to the nearest pixels."""
        size = (INPUT_SIDE, INPUT_SIDE)
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))

    def box(self, prompt_mask: np.ndarray) -> Box:
        """Return the box of the outermost pixels, both inclusive, as MedSAM's data loader does."""
        return inclusive_box(prompt_mask)

    def finish(
        self, predictor: MaskPredictor, low_res: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Sigmoid, one bilinear step to the image, threshold at one half."""
        probabilities = 0.5 * np.tanh(0.5 * np.asarray(low_res, np.float32)) + 0.5
        return np.stack([bilinear(plane, size) > 0.5 for plane in probabilities])


PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol for protocol in (SamProtocol(), HqSamProtocol(), MedSamProtocol())
}


def find_protocol(name: str) -> EvaluationProtocol:
    """Return the protocol called `name`. Raises `UserError` that lists the valid names."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}. Choose one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def tight_box(mask: np.ndarray) -> Box:
    """Return (x0, y0, x1, y1) around the True pixels of a mask [H, W], right and bottom exclusive.

    >>> tight_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1.0, 1.0, 3.0, 2.0)
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def inclusive_box(mask: np.ndarray) -> Box:
    """Return (x0, y0, x1, y1) of the outermost True pixels of a mask [H, W], both inclusive.

    A mask of one column or row gets a box of one pixel, which no predictor takes for empty.
    """
    x0, y0, x1, y1 = tight_box(mask)
    return x0, y0, max(x1 - 1, x0 + 1), max(y1 - 1, y0 + 1)


def bilinear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [h, w] float32, or [h, w, 3] uint8, to `size` = (H, W) without anti-aliasing.

    Equals `F.interpolate(mode="bilinear", align_corners=False)`, cut to whole numbers for uint8.
    """
    (height, width), source = size, Image.fromarray(array)
    across, down = source.width / width, source.height / height
    matrix = (across, 0.0, 0.0, 0.0, down, 0.0)  # Pillow adds the half pixels
    resized = source.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(resized)
