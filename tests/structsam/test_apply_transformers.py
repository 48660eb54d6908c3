"""Merging in transformers' SamModel: in place, equal to the same weights in segment_anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import structsam
from structsam.apply import merged_blocks, set_prompt_box
from structsam.config import PLACEMENTS
from structsam.errors import UserError
from structsam.methods import METHODS
from structsam.models import MODELS, ModelSpec
from structsam.models.load import load_sam
from structsam.recording import block_inputs, record_plans
from tests.structsam.models.test_hugging_face import hugging_face_model

transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")


@pytest.fixture(scope="module")
def folder(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "sam-tiny"
    hugging_face_model(tiny_spec).save_pretrained(path)
    return path


@pytest.fixture
def model(folder: Path) -> Any:
    return transformers.SamModel.from_pretrained(folder).eval()


@pytest.fixture
def sam(folder: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    return load_sam("tiny", checkpoint=folder)


@pytest.fixture
def pixels(tiny_spec: ModelSpec) -> Tensor:
    side = tiny_spec.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_rate_0_is_transformers_own_output(model: Any, pixels: Tensor) -> None:
    expected = model.get_image_embeddings(pixels)
    structsam.apply_merging(model, rate=0.0)
    assert len(merged_blocks(model)) == 3
    assert difference(model.get_image_embeddings(pixels), expected) <= 1e-5


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_merged_it_equals_the_same_weights_in_segment_anything(
    model: Any, sam: Any, pixels: Tensor, method: str, placement: str
) -> None:
    rate = 0.25
    stock = model.get_image_embeddings(pixels)
    for each in (model, sam):
        structsam.apply_merging(each, method=method, rate=rate, placement=placement)
    with torch.inference_mode():
        expected = sam.image_encoder(pixels)
    found = model.get_image_embeddings(pixels)
    assert difference(found, expected) <= 1e-4
    assert difference(found, stock) > 1e-3  # it does merge


def test_removed_it_is_bit_for_bit_what_it_was(model: Any, pixels: Tensor) -> None:
    keys, stock = list(model.state_dict()), model.get_image_embeddings(pixels)
    layers = list(model.vision_encoder.layers)
    structsam.apply_merging(model, rate=0.5)
    assert list(model.state_dict()) == keys  # save_pretrained writes what it always wrote
    structsam.apply_merging(model, rate=0.25)  # again, over itself
    structsam.remove_merging(model)
    assert all(a is b for a, b in zip(model.vision_encoder.layers, layers, strict=True))
    assert torch.equal(model.get_image_embeddings(pixels), stock)


def test_a_merged_model_is_saved_as_a_stock_one(model: Any, pixels: Tensor, tmp_path: Path) -> None:
    stock = model.get_image_embeddings(pixels)
    structsam.apply_merging(model, rate=0.5).save_pretrained(tmp_path)
    again = transformers.SamModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.get_image_embeddings(pixels), stock)


def test_the_encoder_alone_and_the_vision_model(model: Any, pixels: Tensor) -> None:
    structsam.apply_merging(model.vision_encoder, rate=0.5)
    merged = model.get_image_embeddings(pixels)
    vision = transformers.SamVisionModel(model.config.vision_config).eval()
    vision.vision_encoder.load_state_dict(model.vision_encoder.state_dict())
    structsam.apply_merging(vision, rate=0.5)
    with torch.inference_mode():
        assert torch.equal(vision(pixels)[0], merged)


def test_plans_and_inputs_of_its_blocks_are_recorded(model: Any, sam: Any, pixels: Tensor) -> None:
    plans = []
    for each in (model, sam):
        structsam.apply_merging(each, rate=0.5)
        with record_plans(each) as planned, torch.inference_mode():
            encoder = each.vision_encoder if each is model else each.image_encoder
            encoder(pixels)
        plans.append({index: merging.plan.slot_of_token for index, merging in planned.items()})
    assert plans[0].keys() == plans[1].keys() == {0, 1, 2}
    assert all(torch.equal(plans[0][index], plans[1][index]) for index in plans[0])
    with torch.inference_mode():
        assert len(block_inputs(model, pixels)[0]) == 3


def test_a_prompt_box_steers_it(model: Any, pixels: Tensor) -> None:
    structsam.apply_merging(model, rate=0.5, prompt_aware="rank")
    found = []
    for box in ([0, 0, 64, 64], [128, 128, 256, 256]):
        set_prompt_box(model, box)
        found.append(model.get_image_embeddings(pixels))
    assert difference(found[0], found[1]) > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_of_its_attentions(folder: Path, pixels: Tensor, attention: str) -> None:
    model = transformers.SamModel.from_pretrained(folder, attn_implementation=attention).eval()
    stock = model.get_image_embeddings(pixels)
    structsam.apply_merging(model, rate=0.0)
    assert difference(model.get_image_embeddings(pixels), stock) <= 1e-5


def test_its_processor_and_mask_pipeline_keep_working(model: Any, tiny_spec: ModelSpec) -> None:
    side = tiny_spec.image_size
    processor = transformers.SamImageProcessor(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )
    photo = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    structsam.apply_merging(model, rate=0.5)
    whole = transformers.SamProcessor(processor)
    inputs = whole(photo, input_points=[[[100, 75]]], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    masks = whole.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert masks[0].shape == (1, 3, 150, 200)
    from PIL import Image

    pipeline = transformers.pipeline("mask-generation", model=model, image_processor=processor)
    found = pipeline(
        Image.fromarray(photo),
        points_per_batch=16,
        points_per_crop=4,
        pred_iou_thresh=-1e9,
        stability_score_thresh=0.0,
    )
    assert found["masks"] and np.asarray(found["masks"][0]).shape == (150, 200)


def test_another_transformers_model_is_refused() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(UserError, match="ViTModel is not a SAM model.*SamModel of transformers"):
        structsam.apply_merging(transformers.ViTModel(config))
