"""Pixel-exact against segment_anything where that is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.models import MODELS
from structsam_export.predict.preprocessing import check_image, image_geometry, preprocess

SAM = MODELS["vit_b"].preprocessing
MEDSAM = MODELS["medsam"].preprocessing
SIDE = st.integers(1, 1600)


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


def test_a_smaller_network() -> None:
    image, geometry = preprocess(photo(30, 60), replace(SAM, image_size=256))
    assert image.shape == (1, 3, 256, 256) and geometry.input_size == (128, 256)
    assert not image[:, :, 128:].any()


def test_medsam_fills_zero_to_one_without_padding() -> None:
    rgb = photo(50, 80) // 2 + 20
    image, geometry = preprocess(rgb, MEDSAM)
    assert image.shape == (1, 3, 1024, 1024) and image.dtype == np.float32
    assert image.min() == 0 and image.max() == 1
    np.testing.assert_allclose(geometry.to_input(np.array([80.0, 50.0])), [1024, 1024])


def test_medsam_constant_image_is_zero() -> None:
    assert not preprocess(np.full((9, 9, 3), 77, np.uint8), MEDSAM)[0].any()


def test_a_strip_too_thin_to_resize_is_refused() -> None:
    with pytest.raises(UserError, match="3000 x 1 pixels"):
        preprocess(photo(1, 3000), SAM)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_family_has_known_rules(model: str) -> None:
    image, _ = preprocess(photo(20, 30), MODELS[model].preprocessing)
    assert image.shape == (1, 3, *[MODELS[model].image_size] * 2)


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
