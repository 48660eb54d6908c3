"""The model of the authors' package segment-anything-hq, of any geometry, with seeded weights."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch

from structsam.models import ModelSpec
from structsam.models.load import build_sam


def reference_package() -> Any:
    """Import it, or skip the test; it needs timm beside what it declares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("timm", "segment_anything_hq"):
            package = pytest.importorskip(name, reason=f"{name} is not installed: extra `dev`")
    return package


def reference_sam(spec: ModelSpec, seed: int = 0) -> Any:
    """Build it with its own classes as its `_build_sam` does, with weights far from zero."""
    package = reference_package()
    modeling = package.modeling
    encoder = modeling.ImageEncoderViT(
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
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = modeling.MaskDecoderHQ(
        transformer_dim=256, transformer=transformer, vit_dim=spec.embed_dim
    )
    size = (spec.image_size, spec.image_size)
    sam = modeling.Sam(encoder, modeling.PromptEncoder(256, spec.grid, size, 16), decoder).eval()
    sam.load_state_dict(build_sam(spec, seed).state_dict())  # its keys and shapes, all of them
    return sam.requires_grad_(False)
