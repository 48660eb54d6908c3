"""Another input size: the same as stock modules on weights that were resized by hand."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from segment_anything import SamPredictor
from segment_anything.modeling import PromptEncoder, Sam
from segment_anything.modeling.image_encoder import ImageEncoderViT

from structsam import UserError, apply_merging, load_sam
from structsam.flops import unmerged_flops
from structsam.models import ModelSpec, model_spec
from structsam.models.image_size import LARGEST, SMALLEST, read_image_size, resized
from structsam.models.load import build_sam

#: The real grids; narrow and shallow.
NARROW = ModelSpec("narrow", "for tests", 32, 2, 2, global_blocks=(1,))


@pytest.fixture(scope="module")
def trained() -> Sam:
    """As trained, at 1024 pixels."""
    return build_sam(NARROW, seed=3)


def stock_encoder(trained: Sam, size: int) -> ImageEncoderViT:
    """SAM's own encoder built for `size`, its tables as SAM keeps them: `get_rel_pos` resizes.

    Only the position embedding is changed, one channel at a time.
    """
    encoder = copy.deepcopy(trained.image_encoder)
    table = encoder.pos_embed
    side = size // 16
    channels = [
        F.interpolate(table[:, None, :, :, c], (side, side), mode="bicubic", antialias=True)[:, 0]
        for c in range(table.shape[-1])
    ]
    encoder.pos_embed = torch.nn.Parameter(torch.stack(channels, -1), requires_grad=False)
    encoder.img_size = size
    return encoder


def stock_masks(
    trained: Sam, embedding: torch.Tensor, points: torch.Tensor, pixels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution masks and scores of stock modules for points [1, K, 2] on `pixels` a side."""
    side = embedding.shape[-1]
    prompt = PromptEncoder(256, (side, side), (pixels, pixels), 16)
    prompt.load_state_dict(trained.prompt_encoder.state_dict())
    sparse, dense = prompt((points, torch.ones(points.shape[:2])), None, None)
    return trained.mask_decoder(embedding, prompt.get_dense_pe(), sparse, dense, True)


@pytest.mark.parametrize("size", (512, 768, 896))
@torch.inference_mode()
def test_native_equals_stock_modules(trained: Sam, size: int) -> None:
    sam = build_sam(resized(NARROW, size), seed=3)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = stock_encoder(trained, size)(image)
    for merged in (sam, apply_merging(copy.deepcopy(sam), rate=0.0)):
        found = merged.image_encoder(image)
        assert found.shape == (1, 256, size // 16, size // 16)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    points = torch.tensor([[[size * 0.3, size * 0.6], [10.0, 20.0]]])
    sparse, dense = sam.prompt_encoder((points, torch.ones(1, 2)), None, None)
    ours = sam.mask_decoder(expected, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    for a, b in zip(ours, stock_masks(trained, expected, points, size), strict=True):
        torch.testing.assert_close(a, b)
    assert ours[0].shape[-1] == size // 4


@pytest.mark.parametrize("size", (512, 1040))
@torch.inference_mode()
def test_upsample_equals_stock_modules_at_1024(trained: Sam, size: int) -> None:
    """The decoder is SAM's at 1024 pixels, its points moved there pixel centre by centre."""
    sam = build_sam(resized(NARROW, size, "upsample"), seed=3)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    small = stock_encoder(trained, size)(image)
    expected = F.interpolate(small, (64, 64), mode="bilinear")
    found = apply_merging(sam, rate=0.0).image_encoder(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    points = torch.tensor([[[size * 0.3, size * 0.6], [10.0, 20.0]]])
    sparse, dense = sam.prompt_encoder((points, torch.ones(1, 2)), None, None)
    ours = sam.mask_decoder(expected, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    at_1024 = (points + 0.5) * 1024 / size - 0.5
    for a, b in zip(ours, stock_masks(trained, expected, at_1024, 1024), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert ours[0].shape[-1] == 256


@pytest.mark.parametrize("embedding", ("native", "upsample"))
def test_sam_predictor_takes_a_resized_model(
    trained: Sam, embedding: Any, rng: np.random.Generator
) -> None:
    """Points are given in pixels of the photo, masks come in its size; as stock modules have it."""
    size = 512
    predictor = SamPredictor(build_sam(resized(NARROW, size, embedding), seed=3))
    predictor.set_image(rng.integers(0, 256, (120, 200, 3), dtype=np.uint8))
    assert predictor.input_size == (307, 512)
    masks, _, low_res = predictor.predict(np.array([[50.0, 60.0]]), np.array([1]))
    assert masks.shape == (3, 120, 200)
    points = torch.tensor([[[50 * 512 / 200, 60 * 307 / 120], [0, 0]]], dtype=torch.float32)
    prompt = predictor.model.prompt_encoder
    side = prompt.image_embedding_size[0]
    stock = PromptEncoder(256, (side, side), (size, size), 16)
    stock.load_state_dict(trained.prompt_encoder.state_dict())
    sparse, dense = stock((points[:, :1], torch.ones(1, 1)), None, None)
    with torch.inference_mode():
        expected, _ = trained.mask_decoder(
            predictor.features, stock.get_dense_pe(), sparse, dense, True
        )
    np.testing.assert_allclose(low_res, expected[0].numpy(), rtol=1e-3, atol=1e-3)


def test_a_seed_means_the_same_trained_weights_at_every_size(trained: Sam) -> None:
    small = build_sam(resized(NARROW, 512), seed=3).state_dict()
    changed = set()
    for name, tensor in trained.state_dict().items():
        if small[name].shape != tensor.shape or not torch.equal(small[name], tensor):
            changed.add(name)
    assert changed == {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.blocks.1.attn.rel_pos_w",
    }


def test_the_trained_size_is_the_model_itself() -> None:
    for form in ("native", "upsample"):
        assert resized(NARROW, 1024, form) == NARROW  # type: ignore[arg-type]
    assert resized(resized(NARROW, 512), 1024) == NARROW
    assert resized(NARROW) == NARROW and resized(NARROW, 512) == resized(resized(NARROW, 768), 512)
    assert (NARROW.label, resized(NARROW, 512).label) == ("narrow", "narrow-512")
    assert resized(NARROW, 896, "upsample").label == "narrow-896up"


def test_a_checkpoint_is_checked_at_its_own_size() -> None:
    """The weights of the package are of 1024 pixels: they load at every size."""
    for form, side in (("native", 16), ("upsample", 64)):
        sam = load_sam("vit_t", image_size=256, embedding=form)  # type: ignore[arg-type]
        assert sam.image_encoder.img_size == 256
        with torch.inference_mode():
            shape = sam.image_encoder(torch.zeros(1, 3, 256, 256)).shape
        assert shape == (1, 256, side, side)


@given(st.integers(-50, 5000))
def test_sizes_are_multiples_of_16_and_the_nearest_are_named(size: int) -> None:
    allowed = range(SMALLEST, LARGEST + 1, 16)
    if size in allowed:
        spec = resized(NARROW, size)
        assert spec.grid == (size // 16, size // 16)
        assert spec.preprocessing.image_size == size
        assert spec.embedding_grid == spec.grid
        assert resized(NARROW, size, "upsample").embedding_grid == (64, 64)
        return
    with pytest.raises(UserError) as error:
        resized(NARROW, size)
    named = [int(n) for n in re.findall(r"image_size=(\d+)", str(error.value))]
    nearest = min(abs(size - side) for side in allowed)
    assert set(named) <= set(allowed) and min(abs(size - n) for n in named) == nearest


@pytest.mark.parametrize("size", ("768", 768.0, True))
def test_a_size_that_is_no_whole_number(size: Any) -> None:
    with pytest.raises(UserError, match=r"is no whole number of pixels\. Use a multiple of 16"):
        resized(NARROW, size)


def test_wrong_words() -> None:
    with pytest.raises(UserError, match="'abc' is no whole number of pixels.*1024, 896 or 768"):
        read_image_size("abc")
    with pytest.raises(UserError, match="unknown embedding 'bigger'. Use one of: native, upsample"):
        load_sam("vit_t", image_size=512, embedding="bigger")  # type: ignore[arg-type]


@pytest.mark.parametrize("size, windows, padded", ((1024, 25, 804), (896, 16, 0), (448, 4, 0)))
def test_whole_windows_have_no_padding(size: int, windows: int, padded: int) -> None:
    spec = resized(model_spec("vit_b"), size)
    side = spec.grid[0]
    assert math.ceil(side / 14) ** 2 == windows and windows * 196 - side**2 == padded


def test_the_resize_of_an_upsampled_embedding_is_counted() -> None:
    """As fvcore counts it: 4 for each element that comes out."""
    spec = model_spec("vit_t")
    native, upsampled = (
        unmerged_flops(resized(spec, 512, form))
        for form in ("native", "upsample")  # type: ignore[arg-type]
    )
    assert upsampled.total - native.total == 4 * 256 * 64 * 64
