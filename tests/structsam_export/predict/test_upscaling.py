"""Masks equal segment_anything's, where that is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from structsam.models import MODELS
from structsam_export.predict import upscaling
from structsam_export.predict.preprocessing import image_geometry
from structsam_export.predict.upscaling import binary_masks, mask_and_areas, upscale_masks

SAM = MODELS["vit_b"].preprocessing
MEDSAM = MODELS["medsam"].preprocessing
SIDE = st.integers(1, 1600)


@settings(max_examples=15, deadline=None)
@given(SIDE, SIDE)
@example(1024, 1024)
@example(1500, 2250)
@example(1, 1)
@example(64, 65)
@example(3000, 20)
def test_upscaled_masks_are_exact(stock: Any, height: int, width: int) -> None:
    geometry = image_geometry(height, width, SAM)
    seed = np.random.default_rng(height * 5000 + width)
    low_res = seed.normal(size=(2, 256, 256), scale=4).astype(np.float32)
    expected = stock.upscale(low_res, geometry.input_size, geometry.original_size)
    logits = upscale_masks(low_res, geometry)
    assert logits.dtype == np.float32
    # logits reach 17 here; torch's own float32 rounding differs by 1e-4 between its versions
    np.testing.assert_allclose(logits, expected, atol=5e-4, rtol=0)
    np.testing.assert_array_equal(binary_masks(low_res, geometry), logits > 0)


@pytest.mark.parametrize("how", [SAM, MEDSAM], ids=["SAM", "MedSAM"])
@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0])
def test_areas_of_a_mask_and_of_its_higher_and_lower_cuts(how: Any, offset: float) -> None:
    geometry = image_geometry(230, 410, how)
    rows, columns = np.mgrid[:64, :64]
    for radius in (0, 9, 90):  # nothing, a disc that most blocks lie outside of, everything
        noise = np.random.default_rng(radius).normal(size=(64, 64))
        low_res = (radius - np.hypot(rows - 20, columns - 25) + noise).astype(np.float32)
        logits = upscale_masks(low_res, geometry)
        mask, high, low = mask_and_areas(low_res, geometry, offset)
        np.testing.assert_array_equal(mask, logits > 0)
        assert abs(high - (logits > offset).sum()) <= 1  # MedSAM's logits went through a logarithm
        assert abs(low - (logits > -offset).sum()) <= 1


def test_any_leading_dimensions(rng: np.random.Generator) -> None:
    geometry = image_geometry(70, 130, SAM)
    low_res = rng.normal(size=(2, 3, 256, 256)).astype(np.float32)
    logits = upscale_masks(low_res, geometry)
    assert logits.shape == (2, 3, 70, 130)
    np.testing.assert_array_equal(upscale_masks(low_res[1, 2], geometry), logits[1, 2])


def test_a_smaller_network(rng: np.random.Generator) -> None:
    geometry = image_geometry(30, 60, replace(SAM, image_size=256))
    assert binary_masks(rng.normal(size=(1, 64, 64)), geometry).shape == (1, 30, 60)


def test_medsam_upsamples_probabilities(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    geometry = image_geometry(300, 170, MEDSAM)
    low_res = rng.normal(size=(2, 256, 256), scale=4).astype(np.float32)
    probability = torch.nn.functional.interpolate(
        torch.sigmoid(torch.as_tensor(low_res))[None],
        size=(300, 170),
        mode="bilinear",
        align_corners=False,
    )[0].numpy()
    logits = upscale_masks(low_res, geometry)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probability, atol=1e-5)
    clear = abs(probability - 0.5) > 1e-5
    np.testing.assert_array_equal(
        binary_masks(low_res, geometry)[clear], (probability > 0.5)[clear]
    )


def test_memory_of_large_masks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float rows never exceed one block, whatever the size of the photo."""
    largest = 0
    blocks = upscaling._row_blocks

    def spy(*args: Any) -> Any:
        nonlocal largest
        for top, block in blocks(*args):
            largest = max(largest, block.nbytes)
            yield top, block

    monkeypatch.setattr(upscaling, "_row_blocks", spy)
    binary_masks(np.ones((1, 256, 256), np.float32), image_geometry(3000, 4000, SAM))
    assert 0 < largest <= 64 * 4000 * 4
