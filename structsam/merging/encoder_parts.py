"""Where a library's SAM keeps what merging needs; its own classes are never imported from here.

Blocks of every library map a token grid [B, H, W, C] to one of the same shape, and have `attn` with
`qkv`, `proj`, `scale`, `rel_pos_h` and `rel_pos_w`, an `mlp`, two norms and a `window_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class EncoderParts:
    """Names of one library.

    Args:
        library: for people.
        encoder_class: the image encoder's class, with its module.
        encoder: attribute of the whole model that holds it.
        blocks: attribute of the encoder: the transformer blocks.
        norms: attributes of a block: what comes before attention, and before the MLP.
        patches: attributes down to the convolution that makes tokens.
        early_features: the encoder also gives the tokens after its first global block (SAM-HQ).
    """

    library: str
    encoder_class: str
    encoder: str = "image_encoder"
    blocks: str = "blocks"
    norms: tuple[str, str] = ("norm1", "norm2")
    patches: tuple[str, ...] = ("patch_embed", "proj")
    early_features: bool = False

    def blocks_of(self, encoder: nn.Module) -> nn.ModuleList:
        """Return the blocks of an encoder."""
        found: nn.ModuleList = getattr(encoder, self.blocks)
        return found

    def stride_of(self, encoder: nn.Module) -> int:
        """Return how many pixels one token is wide."""
        found: Any = encoder
        for name in self.patches:
            found = getattr(found, name)
        return int(found.stride[0])


_SEGMENT_ANYTHING = "segment_anything.modeling.image_encoder.ImageEncoderViT"
LIBRARIES = (
    EncoderParts(  # before the class that it derives from
        "structsam", "structsam.models.sam_hq.HqImageEncoder", early_features=True
    ),
    EncoderParts("segment_anything", _SEGMENT_ANYTHING),
    EncoderParts(
        "segment_anything_hq",
        "segment_anything_hq.modeling.image_encoder.ImageEncoderViT",
        early_features=True,
    ),
    EncoderParts("cellpose", _SEGMENT_ANYTHING, encoder="encoder"),
    EncoderParts(
        "transformers",
        "transformers.models.sam.modeling_sam.SamVisionEncoder",
        encoder="vision_encoder",
        blocks="layers",
        norms=("layer_norm1", "layer_norm2"),
        patches=("patch_embed", "projection"),
    ),
)


def find_encoder(model: nn.Module) -> tuple[nn.Module, EncoderParts] | None:
    """Return the image encoder of a SAM, or `model` where it is one, and its names; else None."""
    for parts in LIBRARIES:
        for candidate in (model, getattr(model, parts.encoder, None)):
            classes = type(candidate).__mro__
            if any(f"{c.__module__}.{c.__qualname__}" == parts.encoder_class for c in classes):
                assert isinstance(candidate, nn.Module)
                return candidate, parts
    return None


def norms_of(block: nn.Module) -> tuple[str, str]:
    """Return the names of a block's norms."""
    return next(parts.norms for parts in LIBRARIES if hasattr(block, parts.norms[0]))
