"""Names of tensors: prefixes and libraries are told by keys, and every renaming is a bijection."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.models import MODELS
from structsam.models.checkpoint_keys import (
    HUGGING_FACE,
    LANDMARK,
    SEGMENT_ANYTHING,
    lora_keys,
    recognise,
)
from structsam.models.load import _meta_sam

KEYS = list(_meta_sam(MODELS["vit_b"]).state_dict())
PREFIX = st.from_regex(r"([a-z_]{1,8}\.){1,3}", fullmatch=True)


def test_segment_anything_names_stay() -> None:
    found = recognise(KEYS)
    assert found is not None and found.naming is SEGMENT_ANYTHING
    assert found.keys == {key: key for key in KEYS}
    assert found.title == f"segment-anything names, {len(KEYS)} tensors"


@settings(max_examples=25, deadline=None)
@given(prefix=PREFIX)
def test_a_prefix_is_found_and_said(prefix: str) -> None:
    found = recognise([prefix + key for key in KEYS] + ["classifier.weight"])
    assert found is not None
    assert (found.prefix, list(found.keys)) == (prefix, KEYS)
    assert all(found.keys[key] == prefix + key for key in KEYS)
    assert found.others == ("classifier.weight",)
    assert repr(prefix) in found.title


def test_two_models_in_one_file() -> None:
    with pytest.raises(ValueError, match="several models"):
        recognise([f"{model}.{LANDMARK}" for model in ("teacher", "student")])


def test_two_tensors_of_one_name() -> None:
    landmark = HUGGING_FACE.landmark
    with pytest.raises(ValueError, match=r"two tensors for image_encoder\.patch_embed\.proj\.b"):
        recognise(
            [
                landmark,
                "vision_encoder.patch_embed.projection.bias",
                "vision_encoder.patch_embed.proj.bias",
            ]
        )


def test_what_is_no_sam() -> None:
    assert recognise(["layer1.weight", "not_an_image_encoder.patch_embed.proj.weight"]) is None


@pytest.mark.parametrize(
    "key",
    [
        "image_encoder.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.vision_encoder.layers.0.attn.qkv.lora_B.default.weight",
        "w_a_000",
        "image_encoder.blocks.3.attn.qkv.linear_a_q.weight",
    ],
)
def test_adapters_are_told(key: str) -> None:
    assert lora_keys([*KEYS, key]) == [key]
