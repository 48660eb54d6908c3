"""SAM-HQ: the names and outputs of its authors' package, merged in place, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import structsam
from structsam.apply import merged_blocks
from structsam.errors import UserError
from structsam.flops import unmerged_flops
from structsam.models import MODELS, DecoderSpec, ModelSpec, model_spec
from structsam.models.find_model import find_model
from structsam.models.load import _meta_sam, build_sam, load_sam
from tests.structsam.models.hq_reference import reference_package, reference_sam
from tests.structsam.test_flops_of_modules import counted_by_fvcore

#: What SAM-HQ has and SAM has not, for an encoder 32 wide.
OWN_TENSORS: dict[str, tuple[int, ...]] = {
    "hf_token.weight": (1, 256),
    "hf_mlp.layers.0.weight": (256, 256),
    "hf_mlp.layers.0.bias": (256,),
    "hf_mlp.layers.1.weight": (256, 256),
    "hf_mlp.layers.1.bias": (256,),
    "hf_mlp.layers.2.weight": (32, 256),
    "hf_mlp.layers.2.bias": (32,),
    "compress_vit_feat.0.weight": (32, 256, 2, 2),
    "compress_vit_feat.0.bias": (256,),
    "compress_vit_feat.1.weight": (256,),
    "compress_vit_feat.1.bias": (256,),
    "compress_vit_feat.3.weight": (256, 32, 2, 2),
    "compress_vit_feat.3.bias": (32,),
    "embedding_encoder.0.weight": (256, 64, 2, 2),
    "embedding_encoder.0.bias": (64,),
    "embedding_encoder.1.weight": (64,),
    "embedding_encoder.1.bias": (64,),
    "embedding_encoder.3.weight": (64, 32, 2, 2),
    "embedding_encoder.3.bias": (32,),
    "embedding_maskfeature.0.weight": (64, 32, 3, 3),
    "embedding_maskfeature.0.bias": (64,),
    "embedding_maskfeature.1.weight": (64,),
    "embedding_maskfeature.1.bias": (64,),
    "embedding_maskfeature.3.weight": (32, 64, 3, 3),
    "embedding_maskfeature.3.bias": (32,),
}


@pytest.fixture(scope="module")
def spec(tiny_spec: ModelSpec) -> ModelSpec:
    return replace(tiny_spec, name="tiny_hq", decoder=DecoderSpec(hq=True), global_blocks=(1, 2))


@pytest.fixture(autouse=True)
def with_tiny(tiny_spec: ModelSpec, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    monkeypatch.setitem(MODELS, "tiny_hq", spec)


@pytest.fixture
def saved(spec: ModelSpec, tmp_path: Path) -> Callable[..., Path]:
    """`save(change)`: a checkpoint of the tiny SAM-HQ, after `change(state)`."""

    def save(change: Callable[[dict[str, Tensor]], Any] = lambda state: None) -> Path:
        state = build_sam(spec).state_dict()
        state = change(state) or state
        torch.save(state, tmp_path / "sam_hq_tiny.pth")
        return tmp_path / "sam_hq_tiny.pth"

    return save


@pytest.fixture
def pixels(spec: ModelSpec) -> Tensor:
    side = spec.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_its_own_tensors(spec: ModelSpec, tiny_spec: ModelSpec) -> None:
    shapes = {key: tuple(value.shape) for key, value in _meta_sam(spec).state_dict().items()}
    sam = _meta_sam(replace(tiny_spec, global_blocks=spec.global_blocks))
    plain = {key: tuple(value.shape) for key, value in sam.state_dict().items()}
    assert shapes == plain | {f"mask_decoder.{key}": shape for key, shape in OWN_TENSORS.items()}


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_published_sizes_are_sams(size: str) -> None:
    hq, sam = model_spec(f"vit_{size}_hq"), model_spec(f"vit_{size}")
    kept = {
        "name": sam.name,
        "title": sam.title,
        "decoder": DecoderSpec(),
        "official": sam.official,
    }
    assert replace(hq, **kept, weights_note=sam.weights_note) == sam
    assert f"sam_hq_vit_{size}.pth" in hq.how_to_get_weights


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_published_sizes_have_the_authors_tensors(size: str) -> None:
    build = reference_package().sam_model_registry[f"vit_{size}"]
    with torch.device("meta"):
        theirs = {key: value.shape for key, value in build().state_dict().items()}
    ours = _meta_sam(model_spec(f"vit_{size}_hq")).state_dict()
    assert {key: value.shape for key, value in ours.items()} == theirs


def test_a_checkpoint_of_the_authors_package_computes_the_same(
    spec: ModelSpec, pixels: Tensor, tmp_path: Path
) -> None:
    theirs = reference_sam(spec)
    torch.save(theirs.state_dict(), tmp_path / "sam_hq.pth")
    ours = load_sam("auto", checkpoint=tmp_path / "sam_hq.pth")
    found, early = ours.image_encoder(pixels)
    expected, expected_early = theirs.image_encoder(pixels)
    assert torch.equal(found, expected) and len(early) == len(expected_early) == 2
    assert all(map(torch.equal, early, expected_early))
    coords, labels = torch.tensor([[[40.0, 50.0]], [[100.0, 120.0]]]), torch.ones(2, 1)
    sparse, dense = theirs.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    for multimask in (False, True):
        for only in (False, True):
            (masks, scores), (expected_masks, expected_scores) = (
                sam.mask_decoder(
                    image_embeddings=expected,
                    image_pe=theirs.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=multimask,
                    hq_token_only=only,
                    interm_embeddings=expected_early,
                )
                for sam in (ours, theirs)
            )
            assert masks.shape == (2, 1, 64, 64) and scores.shape == (2, 1)
            assert torch.allclose(masks, expected_masks, atol=1e-5)
            assert torch.allclose(scores, expected_scores, atol=1e-5)


@pytest.mark.parametrize("placement", ["attention", "block"])
def test_merging_in_the_authors_model_is_merging_in_ours(
    spec: ModelSpec, pixels: Tensor, placement: str
) -> None:
    theirs, ours = reference_sam(spec), build_sam(spec)
    stock, (stock_early, _) = theirs.image_encoder(pixels)
    for sam in (theirs, ours):
        structsam.apply_merging(sam, rate=0.5, placement=placement)
        assert len(merged_blocks(sam)) == 3
    found, (early, _) = ours.image_encoder(pixels)
    expected, (expected_early, _) = theirs.image_encoder(pixels)
    assert torch.equal(found, expected) and torch.equal(early, expected_early)
    assert early.shape == stock_early.shape == (1, 16, 16, 32)
    assert not torch.allclose(early, stock_early, atol=1e-3)
    structsam.remove_merging(theirs)
    again, (again_early, _) = theirs.image_encoder(pixels)
    assert torch.equal(again, stock) and torch.equal(again_early, stock_early)


def test_a_stage_that_goes_beyond_the_early_features_is_refused(spec: ModelSpec) -> None:
    sam = build_sam(spec)
    with pytest.raises(UserError, match="early features after block 1, .* with block 2"):
        structsam.apply_merging(sam, rate=0.5, placement="stage")
    assert not merged_blocks(sam)
    structsam.apply_merging(sam, rate=(0.5, 0.5, 0.4), placement="stage")  # stages of one block


def test_what_it_is_gets_said(saved: Callable[..., Path], spec: ModelSpec) -> None:
    found, said = find_model("auto", saved())
    assert found == spec
    assert said == (
        "sam_hq_tiny.pth holds tiny_hq, SAM-HQ, segment-anything names, "
        f"{len(_meta_sam(model_spec('tiny_hq')).state_dict())} tensors"
    )


def only_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    start = "mask_decoder."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


def tiny_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    others = {k: v for k, v in state.items() if not k.startswith("image_encoder")}
    return others | {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1)}


def without_token(state: dict[str, Tensor]) -> None:
    del state["mask_decoder.hf_token.weight"]


def of_another_width(state: dict[str, Tensor]) -> None:
    state["mask_decoder.compress_vit_feat.0.weight"] = torch.zeros(160, 256, 2, 2)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("tiny_hq", without_token, r"lacks 1 of \d+ tensors \(mask_decoder\.hf_token\.weight\)"),
        ("auto", without_token, r"lacks 1 of \d+ tensors \(mask_decoder\.hf_token\.weight\)"),
        (
            "tiny_hq",
            of_another_width,
            r"compress_vit_feat\.0\.weight is \[160, 256, 2, 2\], expected \[32, 256, 2, 2\]",
        ),
        ("tiny", lambda state: None, "holds tiny_hq .*, SAM-HQ.*use `model='tiny_hq'`"),
        ("auto", only_decoder, "SAM-HQ's decoder alone.*below 'mask_decoder.'"),
        ("auto", tiny_vit, "a TinyViT encoder, as MobileSAM and Light HQ-SAM have"),
    ],
)
def test_what_does_not_fit_is_named(
    saved: Callable[..., Path], model: str, change: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_sam(model, checkpoint=saved(change))
    assert "\n" not in str(caught.value)


def test_a_plain_sam_is_no_sam_hq(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    torch.save(build_sam(tiny_spec).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="holds tiny .*expected tiny_hq .*SAM-HQ"):
        load_sam("tiny_hq", checkpoint=tmp_path / "plain.pth")


@pytest.mark.parametrize(
    ("embedding", "side"), [("native", 20), ("upsample", 16)], ids=["native", "upsample"]
)
def test_another_input_size(spec: ModelSpec, embedding: Any, side: int) -> None:
    sam = load_sam("tiny_hq", weights="random", image_size=320, embedding=embedding)
    found, (early, _) = sam.image_encoder(torch.randn(1, 3, 320, 320))
    assert found.shape == (1, 256, side, side) and early.shape == (1, side, side, 32)
    assert sam.mask_decoder.hq_features(found, early).shape == (1, 32, 4 * side, 4 * side)


class EncoderWithHqFeatures(torch.nn.Module):
    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, x: Tensor) -> Tensor:
        embedding, early = self.sam.image_encoder(x)
        features: Tensor = self.sam.mask_decoder.hq_features(embedding, early[0])
        return features


@pytest.mark.parametrize("embedding", ["native", "upsample"])
def test_fvcore_counts_the_same(spec: ModelSpec, embedding: Any) -> None:
    from structsam.models.image_size import resized

    at_size = resized(spec, 320, embedding)
    counted = counted_by_fvcore(EncoderWithHqFeatures(build_sam(at_size)), 1, 3, 320, 320)
    assert counted == pytest.approx(unmerged_flops(at_size).total, rel=1e-6)
    assert (
        unmerged_flops(at_size).neck > unmerged_flops(replace(at_size, decoder=DecoderSpec())).neck
    )
