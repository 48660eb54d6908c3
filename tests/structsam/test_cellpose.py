"""Cellpose-SAM, the package's own `CPSAM` on a small ViT: merged in place, and its files loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import structsam
from structsam.apply import merged_blocks
from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec
from structsam.models.find_model import find_model
from structsam.models.load import build_sam, load_sam

vit = pytest.importorskip("cellpose.vit", reason="needs `pip install --no-deps cellpose`")

#: In place of ViT-L: windows and a global block, at SAM's 1024 pixels.
SMALL = ModelSpec("small", "", 32, 2, 2, global_blocks=(1,))


def cellpose_model() -> Any:
    """Cellpose's constructor on a small SAM; the rest of it is as it stands there."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setitem(vit.sam_model_registry, "vit_l", lambda checkpoint: build_sam(SMALL, seed=5))
        model = vit.CPSAM().eval()
    return model.requires_grad_(False)


@pytest.fixture
def model() -> Any:
    return cellpose_model()


@pytest.fixture(scope="module")
def tile() -> torch.Tensor:
    return torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def test_rate_0_is_its_own_output_and_removing_restores_it(model: Any, tile: torch.Tensor) -> None:
    """Tables of 27 and 127 rows are stretched to the 63 of 32 tokens a side, as SAM's code does."""
    rows = {block.attn.rel_pos_h.shape[0] for block in model.encoder.blocks}
    assert rows == {27, 127}
    keys, stock = list(model.state_dict()), model(tile)[0]
    structsam.apply_merging(model, rate=0.0)
    assert len(merged_blocks(model)) == 2 and list(model.state_dict()) == keys
    assert difference(model(tile)[0], stock) <= 1e-5
    structsam.apply_merging(model, rate=0.5)
    assert difference(model(tile)[0], stock) > 1e-3
    structsam.remove_merging(model)
    assert torch.equal(model(tile)[0], stock)


@pytest.mark.parametrize("placement", ["attention", "stage"])
@torch.inference_mode()
def test_its_file_is_recognised_and_merges_alike(
    model: Any, tile: torch.Tensor, tmp_path: Path, placement: str
) -> None:
    model.save_model(tmp_path / "cpsam")
    spec, told = find_model("auto", tmp_path / "cpsam")
    assert spec.name == "vit2x32-p8-256-encoder" and spec.global_blocks == (0, 1)
    assert "(all global), 2 heads, patches of 8 on 256 pixels, no decoder, Cellpose names" in told
    assert "left out 5 others (" in told and "diam_labels" in told
    sam = load_sam("auto", checkpoint=tmp_path / "cpsam")
    expected = model.encoder(tile)
    assert difference(sam.image_encoder(tile), expected) <= 1e-5
    for each in (model, sam):
        structsam.apply_merging(each, rate=0.5, placement=placement)
    merged = model.encoder(tile)
    assert difference(sam.image_encoder(tile), merged) <= 1e-4
    assert difference(merged, expected) > 1e-3


def test_the_real_size_is_called_cpsam() -> None:
    """From the names and shapes that cellpose gives its files; no weights are made."""
    with torch.device("meta"):
        model = vit.CPSAM()
    from structsam.models.checkpoint_file import Checkpoint
    from structsam.models.checkpoint_keys import CELLPOSE, recognise
    from structsam.models.find_model import model_of

    state = model.state_dict()
    names = recognise(state)
    assert names is not None and names.naming is CELLPOSE
    checkpoint = Checkpoint({name: state[key] for name, key in names.keys.items()}, names)
    assert model_of(checkpoint, "cpsam") is MODELS["cpsam"]
    assert len(names.keys) + len(names.others) == len(state)


def test_an_encoder_without_relative_positions_is_refused() -> None:
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(img_size=64, embed_dim=16, depth=1, num_heads=2, use_rel_pos=False)
    with pytest.raises(UserError, match="no rel_pos_h.*use_rel_pos=True"):
        structsam.apply_merging(encoder)
