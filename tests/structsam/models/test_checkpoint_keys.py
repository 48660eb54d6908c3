"""Names of tensors: prefixes and libraries are told by keys, and every renaming is a bijection."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.models import MODELS
from structsam.models.checkpoint_keys import (
    CELLPOSE,
    HUGGING_FACE,
    LANDMARK,
    NAMINGS,
    SEGMENT_ANYTHING,
    Naming,
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


#: What names of all libraries are made of, so that keys which collide are often drawn.
WORDS = sorted(
    {
        word
        for naming in NAMINGS
        for part in (naming.landmark, *sum(naming.renamings, ()), *naming.copies, *naming.beside)
        for word in re.findall(r"[a-z_0-9]{2,}", part)
    }
    | {"0", "1", "blocks", "layers", "image_encoder", "vision_encoder", "encoder", "weight"}
)
KEY = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join)


@settings(max_examples=150)
@given(
    st.sampled_from(NAMINGS),
    st.sets(KEY, max_size=30),
    st.sets(KEY, max_size=2),
    st.just("") | PREFIX,
)
def test_whatever_the_keys_no_tensor_is_lost_or_has_two_names(
    naming: Naming, drawn: set[str], twice: set[str], prefix: str
) -> None:
    """Every renaming that is accepted is a bijection; what would not be one is refused.

    `twice` stand there under both names.
    """
    plain_keys = {*drawn, *twice, *map(naming.rename, twice), naming.landmark}
    keys = sorted(f"{prefix}{key}" for key in plain_keys)
    try:
        found = recognise(keys)
    except ValueError:
        return
    assert found is not None
    used = list(found.keys.values())
    assert len(set(used)) == len(used) and not set(used) & set(found.others)
    copies = {found.prefix + key for key in found.naming.copies}
    assert {*used, *found.others, *(copies & set(keys))} == set(keys)
    for name, key in found.keys.items():
        plain = key.removeprefix(found.prefix)
        assert name in (found.naming.rename(plain), found.naming.copies.get(plain))


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_order_of_keys_changes_nothing(naming: Naming) -> None:
    keys = [f"a.{naming.landmark}", "a.x.weight", "a.y.weight", *(f"a.{k}" for k in naming.copies)]
    forwards, backwards = recognise(keys), recognise(keys[::-1])
    assert forwards is not None and backwards is not None
    assert dict(forwards.keys) == dict(backwards.keys)


def test_cellpose_names_are_segment_anythings_without_the_head() -> None:
    encoder = [key for key in KEYS if key.startswith("image_encoder.")]
    theirs = [key.removeprefix("image_") for key in encoder] + sorted(CELLPOSE.beside)
    found = recognise(theirs)
    assert found is not None and found.naming is CELLPOSE
    assert list(found.keys) == encoder and found.others == tuple(sorted(CELLPOSE.beside))


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
