"""scripts/vit_t_teacher.py reads exported networks as those who wrote them compute."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structsam.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def teacher() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("vit_t_teacher")
    sys.path.remove(str(SCRIPTS))


def exported(module: nn.Module, inputs: Any, path: Path, names: list[str]) -> Path:
    """With the exporter that folds, transposes and renames, as the published files were made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, str(path), input_names=names, opset_version=17, dynamo=False
        )
    return path


class TinySam(nn.Module):
    """timm's TinyViT with the last merging at stride 1 and SAM's neck, as in MobileSAM."""

    def __init__(self) -> None:
        from segment_anything.modeling.common import LayerNorm2d

        timm = pytest.importorskip("timm", reason="the reference of the teacher is timm's TinyViT")
        # not by timm's registry: segment-anything-hq puts a TinyViT of its own there
        from timm.models.tiny_vit import tiny_vit_5m_224

        super().__init__()
        timm.layers.set_fused_attn(False)
        model = tiny_vit_5m_224(pretrained=False)
        timm.layers.set_fused_attn(True)
        self.patch_embed, self.layers = model.patch_embed, model.stages
        self.layers[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )
        with torch.no_grad():  # nothing may be the identity
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if "running_var" in name:
                    tensor.uniform_(0.5, 2)
                elif tensor.dtype.is_floating_point and tensor.ndim == 1:
                    tensor.normal_(0.3, 0.2)
                elif "attention_biases" in name:
                    tensor.normal_()
        for module in model.modules():
            if hasattr(module, "attention_biases"):  # a constant, as TinyViT keeps it for inference
                table = module.attention_biases[:, module.attention_bias_idxs].detach()
                module.get_attention_biases = lambda device, table=table: table

    def forward(self, images: Tensor) -> Tensor:
        return self.neck(self.layers(self.patch_embed(images)))


def test_the_encoder_is_timms(teacher: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = TinySam().eval()
    images = torch.randn(2, 3, 160, 160)
    path = exported(reference, images[:1], tmp_path / "encoder.onnx", ["input"])
    with torch.no_grad():
        wanted, got = reference(images), teacher.TinyViTTeacher(path)(images)
    assert wanted.std() > 0.05
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_the_decoder_has_sams_own_weights(
    teacher: Any, tmp_path: Path, tiny_sam_factory: Callable[..., Any]
) -> None:
    from segment_anything.utils.onnx import SamOnnxModel

    sam = tiny_sam_factory()
    grid = sam.prompt_encoder.image_embedding_size
    side = 4 * grid[0]
    inputs = {
        "image_embeddings": torch.randn(1, 256, *grid),
        "point_coords": torch.rand(1, 3, 2) * 16 * grid[0],
        "point_labels": torch.tensor([[1.0, 0.0, -1.0]]),
        "mask_input": torch.randn(1, 1, side, side),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([64.0, 48.0]),
    }
    model = SamOnnxModel(sam, return_single_mask=True)
    path = exported(model, tuple(inputs.values()), tmp_path / "sam.onnx", list(inputs))
    state = teacher.decoder_weights(path)
    own = {k: v for k, v in sam.state_dict().items() if not k.startswith("image_encoder.")}
    assert set(state) == set(own)
    for name, value in own.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_other_files_are_refused(teacher: Any, tmp_path: Path) -> None:
    path = tmp_path / "sam.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match=r"Cannot read the teacher .*sam\.onnx"):
        teacher.decoder_weights(path)
    with pytest.raises(UserError, match=r"Cannot read the teacher .*absent\.onnx"):
        teacher.TinyViTTeacher(tmp_path / "absent.onnx")
    other = exported(nn.Linear(4, 4), torch.randn(1, 4), tmp_path / "other.onnx", ["x"])
    with pytest.raises(UserError, match="no SAM decoder"):
        teacher.decoder_weights(other)
    with pytest.raises(UserError, match="no TinyViT"):
        teacher.TinyViTTeacher(other)
