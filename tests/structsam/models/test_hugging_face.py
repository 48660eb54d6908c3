"""Checkpoints that transformers writes: folders, shards, prefixes; the same model through both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec
from structsam.models.checkpoint_file import identify_checkpoint, read_checkpoint
from structsam.models.checkpoint_keys import HUGGING_FACE, recognise
from structsam.models.find_model import find_model
from structsam.models.load import _meta_sam, load_sam

transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")


def hugging_face_model(spec: ModelSpec) -> Any:
    """Return transformers' own SamModel of a geometry, its weights far from zero."""
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": spec.embed_dim,
            "num_hidden_layers": spec.depth,
            "num_attention_heads": spec.num_heads,
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
            "window_size": spec.window_size,
            "global_attn_indexes": list(spec.global_blocks),
            "num_pos_feats": 128,
        },
        prompt_encoder_config={"image_size": spec.image_size, "patch_size": spec.patch_size},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SamModel(config).eval()
        for name, value in model.state_dict().items():
            if not name.endswith("positional_embedding"):
                value.add_(0.03 * torch.randn_like(value))
    # one tensor under two names, as in every published checkpoint
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding = shared
    return model


@pytest.fixture(scope="module")
def model(tiny_spec: ModelSpec) -> Any:
    return hugging_face_model(tiny_spec)


@pytest.fixture(autouse=True)
def with_tiny(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "sam-tiny"
    model.save_pretrained(path)
    return path


@settings(max_examples=6, deadline=None)
@given(depth=st.integers(1, 5), heads=st.sampled_from([1, 2, 4]), data=st.data())
def test_names_are_a_bijection_for_every_geometry(
    depth: int, heads: int, data: st.DataObject
) -> None:
    whole = data.draw(st.sets(st.integers(0, depth - 1)))
    spec = ModelSpec("any", "any", 16 * heads, depth, heads, tuple(sorted(whole)), image_size=64)
    with torch.device("meta"):
        keys = hugging_face_model_keys(spec)
    found = recognise(keys)
    assert found is not None and found.naming is HUGGING_FACE
    ours = _meta_sam(spec).state_dict()
    assert set(found.keys) == set(ours)
    assert {name: keys[key] for name, key in found.keys.items()} == {
        name: tuple(value.shape) for name, value in ours.items()
    }
    assert len(set(found.keys.values())) == len(ours)


def hugging_face_model_keys(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    vision = {
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "image_size": spec.image_size,
        "global_attn_indexes": list(spec.global_blocks),
    }
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config={"image_size": spec.image_size}
    )
    state = transformers.SamModel(config).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def test_the_same_embedding_and_masks_as_transformers(model: Any, folder: Path) -> None:
    sam = load_sam("tiny", checkpoint=folder)
    side = sam.image_encoder.img_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    points, labels = torch.tensor([[[[40.0, 50.0], [90.0, 20.0]]]]), torch.tensor([[[1, 0]]])
    box = torch.tensor([[[10.0, 20.0, 100.0, 90.0]]])
    with torch.inference_mode():
        ours, theirs = sam.image_encoder(pixels), model.get_image_embeddings(pixels)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        for asked in (
            {"input_points": points, "input_labels": labels},
            {"input_boxes": box},
        ):
            expected = model(image_embeddings=theirs, multimask_output=True, **asked)
            given_points = None if "input_boxes" in asked else (points[0], labels[0])
            sparse, dense = sam.prompt_encoder(
                points=given_points, boxes=asked.get("input_boxes", [None])[0], masks=None
            )
            masks, scores = sam.mask_decoder(
                image_embeddings=ours,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            # their decoder's norms have another epsilon (1e-6 for 1e-5)
            assert (masks - expected.pred_masks[0]).abs().max() <= 1e-3 * masks.abs().max()
            assert torch.allclose(scores, expected.iou_scores[0], rtol=1e-3, atol=1e-3)


def test_what_it_is_gets_said(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.title == f"Hugging Face names, {len(checkpoint.state)} tensors"
    spec, said = find_model("auto", folder)
    assert spec == MODELS["tiny"]
    assert said == f"sam-tiny holds tiny, {checkpoint.title}"
    assert load_sam("auto", checkpoint=folder).image_encoder.img_size == 256


def test_shards_are_one_model(model: Any, folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="2MB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    one, many = read_checkpoint(folder).state, read_checkpoint(sharded).state
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)
    whole = sum(file.stat().st_size for file in sharded.glob("model-*.safetensors"))
    assert identify_checkpoint(sharded).size == whole
    assert identify_checkpoint(sharded).file == "sharded"


def test_a_missing_shard_is_named(model: Any, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="2MB")
    lost = sorted(sharded.glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(UserError, match=f"not found: .*{lost.name}"):
        load_sam("tiny", checkpoint=sharded)


def test_an_index_that_leaves_its_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match=r"names '\.\./secret\.safetensors'"):
        load_sam("tiny", checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"model_type": "sam2"}'}, "model of type 'sam2', expected 'sam'"),
        ({"config.json": '{"model_type": "sam"}'}, "a config.json and no weights"),
        ({"config.json": "{"}, r"Cannot read .*config\.json"),
        ({"config.json": "[1]"}, "holds a list, expected an object"),
        ({"config.json": "[" * 100_000}, r"Cannot read .*config\.json"),
        ({"adapter_config.json": "{}"}, r"an adapter \(LoRA\) without its model: merge it first"),
        ({}, r"a folder without config\.json"),
        (
            {"config.json": '{"model_type": "sam"}', "model.safetensors.index.json": "{}"},
            "names no files under 'weight_map'",
        ),
    ],
)
def test_other_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_sam("tiny", checkpoint=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_training_checkpoint_with_prefix_and_optimiser(model: Any, tmp_path: Path) -> None:
    state = {f"module.sam.{key}": value for key, value in model.state_dict().items()}
    state["module.head.weight"] = torch.zeros(2)
    path = tmp_path / "epoch_9.pth"
    torch.save({"model_state_dict": state, "optimizer": {"lr": 0.1}, "epoch": 9}, path)
    checkpoint = read_checkpoint(path)
    assert "below 'module.sam.'" in checkpoint.title
    assert "left out 1 others (module.head.weight)" in checkpoint.title
    load_sam("tiny", checkpoint=path)


def test_adapters_beside_weights_are_refused(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora.pth"
    state = {**model.state_dict(), "vision_encoder.layers.0.attn.qkv.lora_A.weight": torch.zeros(1)}
    torch.save(state, path)
    with pytest.raises(UserError, match=r"holds adapters \(LoRA\): 1 of .*Merge them"):
        load_sam("tiny", checkpoint=path)
