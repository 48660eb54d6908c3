"""What segment_anything computes, to compare with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def stock() -> Any:
    """`Sam.preprocess`, `Sam.postprocess_masks` and `ResizeLongestSide`, without a network."""
    torch = pytest.importorskip("torch")
    segment_anything = pytest.importorskip("segment_anything")
    transforms = pytest.importorskip("segment_anything.utils.transforms")
    sam_class = segment_anything.modeling.Sam
    owner = SimpleNamespace(
        image_encoder=SimpleNamespace(img_size=1024),
        pixel_mean=torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1),
        pixel_std=torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1),
    )

    def stock_preprocess(rgb: np.ndarray) -> np.ndarray:
        resized = transforms.ResizeLongestSide(1024).apply_image(rgb)
        tensor = torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None]
        return sam_class.preprocess(owner, tensor).numpy()

    def stock_upscale(low_res: np.ndarray, input_size: Any, original_size: Any) -> np.ndarray:
        masks = torch.as_tensor(low_res)[None]
        return sam_class.postprocess_masks(owner, masks, input_size, original_size)[0].numpy()

    return SimpleNamespace(
        preprocess=stock_preprocess,
        upscale=stock_upscale,
        transform=transforms.ResizeLongestSide(1024),
    )
