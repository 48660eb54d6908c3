"""The masks that a Triton model picks, without a server."""

from __future__ import annotations

from typing import Any

import numpy as np

from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.triton.models import masks as module
from structsam_export.triton.models.masks import PhotoMasks

SCORES = np.array([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8]])


class Fake:
    """A predictor whose mask of a prompt and output is full of 10 * prompt + output."""

    encoded_image = EncodedImage(ImageGeometry((8, 8), (8, 8), 8), None, np.zeros(4, np.float32))

    def set_image(self, rgb: np.ndarray) -> None:
        self.rgb = rgb

    def set_encoded_image(self, image: EncodedImage) -> None:
        self.image = image

    def predict_asked(self, prompts: AskedPrompts) -> tuple[np.ndarray, np.ndarray]:
        numbers = 10 * np.arange(2)[:, None] + np.arange(3)
        return SCORES, np.broadcast_to(numbers[..., None, None], (2, 3, 4, 4))

    def upscale(self, low_res: np.ndarray) -> np.ndarray:
        return low_res


def found(monkeypatch: Any, all_masks: bool) -> tuple[list[Any], list[Any]]:
    monkeypatch.setattr(module, "read_image_bytes", lambda photo, name: np.zeros((8, 8, 3)))
    boxes = ((0.0, 0.0, 4.0, 4.0), (4.0, 4.0, 8.0, 8.0))
    answer = PhotoMasks(Fake(), 1 << 20).masks(b"photo", AskedPrompts((), boxes, all_masks))  # type: ignore[arg-type]
    assert answer["scores"].dtype == np.float32
    return answer["masks"][..., 0, 0].tolist(), answer["scores"].tolist()


def test_the_best_mask_of_every_prompt_comes_with_its_score(monkeypatch: Any) -> None:
    masks, scores = found(monkeypatch, all_masks=False)
    assert masks == [[1], [12]]
    assert scores == np.float32([[0.9], [0.8]]).tolist()


def test_all_masks_keep_their_order(monkeypatch: Any) -> None:
    masks, scores = found(monkeypatch, all_masks=True)
    assert masks == [[0, 1, 2], [10, 11, 12]]
    assert scores == np.float32(SCORES).tolist()
