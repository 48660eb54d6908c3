"""Pixel-exact against segment_anything where that is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.models import MODELS
from structsam_export.predict import preprocessing
from structsam_export.predict.preprocessing import (
    binary_masks,
    check_image,
    image_geometry,
    preprocess,
    upscale_masks,
)

SAM = MODELS["vit_b"].preprocessing.to_dict()
MEDSAM = MODELS["medsam"].preprocessing.to_dict()
SIDE = st.integers(1, 1600)


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


def photo(height: int, width: int) -> np.ndarray:
    seed = np.random.default_rng(height * 5000 + width)
    return seed.integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=20, deadline=None)
@given(SIDE, SIDE)
@example(1024, 1024)
@example(1500, 2250)
@example(1, 1)
@example(1, 1600)
@example(427, 640)
def test_preprocess_is_pixel_exact(stock: Any, height: int, width: int) -> None:
    rgb = photo(height, width)
    image, geometry = preprocess(rgb, SAM)
    assert image.dtype == np.float32 and image.shape == (1, 3, 1024, 1024)
    np.testing.assert_array_equal(image, stock.preprocess(rgb))
    assert geometry.input_size == stock.transform.get_preprocess_shape(height, width, 1024)


@settings(max_examples=50, deadline=None)
@given(SIDE, SIDE, st.floats(0, 1), st.floats(0, 1))
def test_coordinates_are_exact(stock: Any, height: int, width: int, x: float, y: float) -> None:
    xy = np.array([[x * width, y * height]])
    mapped = image_geometry(height, width, SAM).to_input(xy)
    expected = stock.transform.apply_coords(xy, (height, width)).astype(np.float32)
    np.testing.assert_array_equal(mapped, expected)


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


def test_any_leading_dimensions(rng: np.random.Generator) -> None:
    geometry = image_geometry(70, 130, SAM)
    low_res = rng.normal(size=(2, 3, 256, 256)).astype(np.float32)
    logits = upscale_masks(low_res, geometry)
    assert logits.shape == (2, 3, 70, 130)
    np.testing.assert_array_equal(upscale_masks(low_res[1, 2], geometry), logits[1, 2])


def test_a_smaller_network(rng: np.random.Generator) -> None:
    image, geometry = preprocess(photo(30, 60), {**SAM, "image_size": 256})
    assert image.shape == (1, 3, 256, 256) and geometry.input_size == (128, 256)
    assert not image[:, :, 128:].any()
    assert binary_masks(rng.normal(size=(1, 64, 64)), geometry).shape == (1, 30, 60)


def test_medsam_fills_zero_to_one_without_padding() -> None:
    rgb = photo(50, 80) // 2 + 20
    image, geometry = preprocess(rgb, MEDSAM)
    assert image.shape == (1, 3, 1024, 1024) and image.dtype == np.float32
    assert image.min() == 0 and image.max() == 1
    np.testing.assert_allclose(geometry.to_input(np.array([80.0, 50.0])), [1024, 1024])


def test_medsam_constant_image_is_zero() -> None:
    assert not preprocess(np.full((9, 9, 3), 77, np.uint8), MEDSAM)[0].any()


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


def test_a_strip_too_thin_to_resize_is_refused() -> None:
    with pytest.raises(UserError, match="3000 x 1 pixels"):
        preprocess(photo(1, 3000), SAM)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_family_has_known_rules(model: str) -> None:
    image, _ = preprocess(photo(20, 30), MODELS[model].preprocessing.to_dict())
    assert image.shape == (1, 3, 1024, 1024)


@pytest.mark.parametrize("key", ["resize", "interpolation", "scaling"])
def test_unknown_rules_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"preprocessing.{key} is 'odd'"):
        preprocess(photo(20, 30), {**SAM, key: "odd"})


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((3, 4, 4), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_images_of_another_kind_are_refused(image: Any, found: str) -> None:
    with pytest.raises(UserError, match=found):
        check_image(image)


def test_memory_of_large_masks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float rows never exceed one block, whatever the size of the photo."""
    largest = 0
    blocks = preprocessing._row_blocks

    def spy(*args: Any) -> Any:
        nonlocal largest
        for top, block in blocks(*args):
            largest = max(largest, block.nbytes)
            yield top, block

    monkeypatch.setattr(preprocessing, "_row_blocks", spy)
    binary_masks(np.ones((1, 256, 256), np.float32), image_geometry(3000, 4000, SAM))
    assert 0 < largest <= 64 * 4000 * 4
