"""Specs, random weights and `load_sam`, on a tiny geometry wherever torch is involved."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from structsam.errors import UserError
from structsam.models import MODELS, DecoderSpec, ModelSpec, Preprocessing, model_spec
from structsam.models.load import _meta_sam, build_sam, load_sam


@pytest.fixture
def with_tiny(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The registry with a model "tiny", so that `load_sam("tiny")` is quick."""
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    return tiny_spec


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_is_named_after_its_key_and_keeps_sams_grid(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert spec.grid == ((32, 32) if name == "cpsam" else (64, 64))
    assert spec.head_dim == (80 if name.startswith("vit_h") else 64)
    assert spec.official is not None or spec.weights_note
    assert spec.how_to_get_weights


def test_official_file_names_begin_with_their_md5() -> None:
    officials = [spec.official for spec in MODELS.values() if spec.official]
    assert len(officials) == 3
    for official in officials:
        assert official.file.removesuffix(".pth").endswith("_" + official.md5[:6])
        assert official.url.endswith("/" + official.file)
        assert len(official.md5) == 32


def test_unknown_model_lists_the_valid_names() -> None:
    with pytest.raises(UserError, match=r"'vit_x'.*vit_t, vit_b, vit_l, vit_h, medsam"):
        model_spec("vit_x")


def test_medsam_has_its_own_preprocessing_and_vit_bs_geometry() -> None:
    medsam, vit_b = model_spec("medsam"), model_spec("vit_b")
    assert (medsam.embed_dim, medsam.depth, medsam.global_blocks) == (768, 12, (2, 5, 8, 11))
    assert (vit_b.preprocessing.resize, vit_b.preprocessing.scaling) == ("long_side", "mean_std")
    assert (medsam.preprocessing.resize, medsam.preprocessing.scaling) == ("stretch", "min_max")
    assert medsam.preprocessing.interpolation == "bicubic"
    assert medsam.preprocessing.mean is None
    assert not medsam.preprocessing.pad


@pytest.mark.parametrize("name", ["vit_b", "medsam"])
def test_preprocessing_survives_json(name: str) -> None:
    import json

    preprocessing = model_spec(name).preprocessing
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "crop"}, "'resize' is 'crop'"),
        ({"mean": [1.0, 2.0]}, "'mean'"),
        ({"mean": None}, "'mean' is None, expected three numbers, as 'mean_std' takes both"),
        ({"std": [1.0, 0.0, 1.0]}, "'std' is .* three numbers above 0"),
        ({"image_size": "1024"}, "'image_size'"),
        ({"pad": False}, "'pad' is False"),
        ({"scaling": "odd"}, "'scaling' is 'odd'"),
        ({"interpolation": ["bilinear"]}, "'interpolation'"),
        ({"extra": 1}, "another version"),
    ],
)
def test_preprocessing_from_an_edited_manifest_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing.from_dict({**model_spec("vit_b").preprocessing.to_dict(), **change})


def test_preprocessing_follows_the_image_size(tiny_spec: ModelSpec) -> None:
    assert tiny_spec.grid == (16, 16)
    assert tiny_spec.preprocessing.image_size == 256
    assert model_spec("vit_b").preprocessing.image_size == 1024


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 3},
        {"image_size": 250},
        {"global_blocks": (3,)},
        {"global_blocks": (), "decoder": DecoderSpec(hq=True)},
    ],
)
def test_impossible_geometry_is_a_defect(tiny_spec: ModelSpec, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(tiny_spec, **change)


def test_importing_the_registry_loads_no_torch() -> None:
    code = (
        "import sys, structsam.models, structsam.models.download, structsam.models.load\n"
        "heavy = {'torch', 'torchvision', 'segment_anything', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_geometry_equals_segment_anythings_own_builders() -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h"):
            theirs = sam_model_registry[name]().state_dict()
            ours = _meta_sam(model_spec(name)).state_dict()
            assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_global_blocks_are_where_the_spec_says(name: str) -> None:
    spec = model_spec(name)
    windows = [block.window_size for block in _meta_sam(spec).image_encoder.blocks]
    assert [i for i, w in enumerate(windows) if w == 0] == list(spec.global_blocks)
    assert {w for w in windows if w} == ({spec.window_size} if name != "cpsam" else set())


def test_tiny_sam_computes_on_a_padded_grid(tiny_sam_factory: Callable[..., Any]) -> None:
    sam = tiny_sam_factory()
    embedding = sam.image_encoder(torch.randn(1, 3, 256, 256))
    assert embedding.shape == (1, 256, 16, 16)
    assert torch.isfinite(embedding).all()
    assert embedding.std(dim=(2, 3)).min() > 0.05, "the embedding hardly varies over space"


def test_model_is_in_eval_mode_without_gradients_or_meta_tensors(
    tiny_sam_factory: Callable[..., Any],
) -> None:
    sam = tiny_sam_factory()
    assert not any(module.training for module in sam.modules())
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert {t.device.type for t in [*sam.parameters(), *sam.buffers()]} == {"cpu"}
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert sam.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_random_weights_follow_the_seed_alone(tiny_sam_factory: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    first = tiny_sam_factory(seed=5).state_dict()
    torch.manual_seed(2)
    again = tiny_sam_factory(seed=5).state_dict()
    other = tiny_sam_factory(seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_random_weights_leave_the_global_generators_alone(
    tiny_sam_factory: Callable[..., Any],
) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore
    tiny_sam_factory(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore


def test_no_random_tensor_is_degenerate(tiny_sam_factory: Callable[..., Any]) -> None:
    sam = tiny_sam_factory()
    for name, tensor in sam.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        assert (tensor != 0).all() and tensor.std() > 0.01, f"{name} is constant or zero"
        assert tensor.abs().max() < 6, name


@pytest.mark.parametrize("part", ["rel_pos_h", "rel_pos_w", "pos_embed"])
def test_every_kind_of_position_reaches_the_output(
    tiny_sam_factory: Callable[..., Any], part: str
) -> None:
    sam, image = tiny_sam_factory(), torch.randn(1, 3, 256, 256)
    before = sam.image_encoder(image)
    for name, parameter in sam.image_encoder.named_parameters():
        if part in name:
            parameter.zero_()
    change = (sam.image_encoder(image) - before).norm() / before.norm()
    assert change > 0.005, f"zeroing {part} changes the embedding by only {change:.2g}"


def test_random_masks_are_neither_empty_nor_full(tiny_sam_factory: Callable[..., Any]) -> None:
    sam = tiny_sam_factory()
    embedding = sam.image_encoder(torch.randn(1, 3, 256, 256))
    box = torch.tensor([[40.0, 40.0, 180.0, 200.0]])
    sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
    masks, scores = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    assert masks.shape == (1, 3, 64, 64)
    assert scores.shape == (1, 3)
    share = (masks > 0).float().mean(dim=(2, 3))
    assert ((share > 0.02) & (share < 0.98)).any(), share


def _stock_sam(spec: ModelSpec) -> Any:
    """segment-anything's own constructors, initialised and loaded the ordinary way."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    encoder = ImageEncoderViT(
        depth=spec.depth,
        embed_dim=spec.embed_dim,
        img_size=spec.image_size,
        mlp_ratio=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=spec.num_heads,
        patch_size=spec.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=spec.global_blocks,
        window_size=spec.window_size,
        out_chans=256,
    )
    prompt = PromptEncoder(256, spec.grid, (spec.image_size, spec.image_size), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    return Sam(encoder, prompt, decoder).eval()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "wrapped"])
def test_checkpoint_gives_the_very_same_model(
    with_tiny: ModelSpec, tmp_path: Path, form: str
) -> None:
    from safetensors.torch import save_file

    stock = _stock_sam(with_tiny)
    stock.load_state_dict(build_sam(with_tiny, seed=9).state_dict())
    path = tmp_path / "weights.pth"
    if form == "safetensors":
        save_file(stock.state_dict(), path)  # told by its content, whatever it is called
    elif form == "wrapped":
        torch.save({"model": stock.state_dict(), "epoch": 3}, path)
    else:
        torch.save(stock.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    sam = load_sam("tiny", checkpoint=path)
    image = torch.randn(1, 3, 256, 256)
    assert torch.equal(sam.image_encoder(image), stock.image_encoder(image))
    for theirs, ours in zip(stock.buffers(), sam.buffers(), strict=True):
        assert torch.equal(theirs, ours)
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert {t.device.type for t in [*sam.parameters(), *sam.buffers()]} == {"cpu"}


def test_parameters_are_the_mapped_file_not_a_copy(
    with_tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build_sam(with_tiny).state_dict(), path)
    loaded, real_load = [], torch.load

    def spy(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["mmap"] and kwargs["weights_only"]
        loaded.append(real_load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(torch, "load", spy)
    sam = load_sam("tiny", checkpoint=str(path))
    for name, parameter in sam.named_parameters():
        assert parameter.data_ptr() == loaded[0][name].data_ptr(), name


def test_half_precision_checkpoint_becomes_float32(with_tiny: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({k: v.half() for k, v in build_sam(with_tiny).state_dict().items()}, path)
    sam = load_sam("tiny", checkpoint=path)
    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}


def test_load_sam_random_equals_build_sam(with_tiny: ModelSpec) -> None:
    ours = load_sam("tiny", weights="random", seed=4).state_dict()
    assert all(torch.equal(ours[k], v) for k, v in build_sam(with_tiny, 4).state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_b", {}, r"checkpoint=FILE.*structsam-export download vit_b.*weights='random'"),
        ("medsam", {}, r"bowang-lab/MedSAM.*weights='random'"),
        ("vit_b", {"checkpoint": "a.pth", "weights": "random"}, "exactly one"),
        ("vit_b", {"weights": "imagenet"}, "'imagenet', expected 'random'"),
        ("vit_q", {"weights": "random"}, "Unknown model 'vit_q'"),
        ("vit_b", {"checkpoint": "absent.pth"}, "not found.*structsam-export download vit_b"),
    ],
)
def test_weights_are_never_chosen_silently(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_sam(name, **arguments)
    assert "\n" not in str(caught.value)


def test_vit_t_comes_with_its_weights() -> None:
    sam, other = load_sam("vit_t"), load_sam("vit_t", weights="random")
    file = MODELS["vit_t"].embedded_weights
    assert file is not None and file.stat().st_size < 25e6
    loaded = load_sam("vit_t", checkpoint=file).state_dict()
    for key, value in sam.state_dict().items():
        assert torch.equal(value, loaded[key]), key
        assert value.isfinite().all()
    table = "image_encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(sam.state_dict()[table], other.state_dict()[table])


def test_missing_embedded_weights_are_said(
    with_tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(with_tiny, embedded="absent.safetensors"))
    with pytest.raises(UserError, match="missing from this installation"):
        load_sam("tiny")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'segment_anything'"), r"structsam\[export\]"),
        (RuntimeError("operator torchvision::nms does not exist\nmore"), "--force-reinstall torch"),
        (ImportError("libtorch.so: undefined symbol"), "--force-reinstall torch"),
    ],
)
def test_broken_installation_says_what_to_install(
    error: Exception, message: str, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("segment_anything"):
            raise error
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=message) as caught:
        build_sam(tiny_spec)
    assert "\n" not in str(caught.value)
