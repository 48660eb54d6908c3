"""What tensors of a SAM checkpoint are called: other libraries' names become segment-anything's.

Every way of naming is one entry of `NAMINGS`: a key that tells it, and a list of renamings. Written
from the module trees of the libraries; no tensor is changed, only its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: The key that every segment-anything model has.
LANDMARK = "image_encoder.patch_embed.proj.weight"

#: What begins the names of SAM-HQ's own tensors.
HQ_PREFIXES = tuple(
    f"mask_decoder.{part}."
    for part in (
        "hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature"
    )
)  # fmt: skip
#: Keys of what is no whole SAM with a ViT: what it is, and the way out.
_OTHERS = {
    "patch_embed.seq.0.c.weight": (
        "a TinyViT encoder, as MobileSAM and Light HQ-SAM have: it is no plain ViT, and its blocks "
        "do not merge here. Pass SAM's or SAM-HQ's ViT-B, L or H"
    ),
    "hf_token.weight": (
        "SAM-HQ's decoder alone, as its training saves it. Put its tensors below 'mask_decoder.' "
        "beside SAM's, and save one state dict"
    ),
}

_POINT_ENCODING = "pe_layer.positional_encoding_gaussian_matrix"
_LORA = re.compile(r"(^|[._])(lora|linear_[ab]_[qkv]|w_[ab]_\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Naming:
    """One library's names for SAM's tensors.

    Args:
        title: the library, for people.
        landmark: a key that only these names have.
        renamings: (pattern, replacement) pairs of `re.sub`, applied in this order.
        copies: keys whose tensor another key may hold as well, which then counts; segment-anything
            name of each.
        beside: keys that are no part of a SAM, such as another head's; they are left out.
        stretch_positions: see `ModelSpec`.
    """

    title: str
    landmark: str
    renamings: tuple[tuple[str, str], ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    stretch_positions: bool = False

    def rename(self, key: str) -> str:
        """Return segment-anything's name of a tensor."""
        for pattern, replacement in self.renamings:
            key = re.sub(pattern, replacement, key)
        return key


SEGMENT_ANYTHING = Naming("segment-anything names", LANDMARK)
#: `SamModel` of transformers (checked with 5.24).
HUGGING_FACE = Naming(
    "Hugging Face names",
    "vision_encoder.patch_embed.projection.weight",
    (
        (r"^vision_encoder\.", "image_encoder."),
        (r"^(image_encoder\.patch_embed)\.projection", r"\1.proj"),
        (r"^(image_encoder)\.layers", r"\1.blocks"),
        (r"^(image_encoder\.neck)\.conv1", r"\1.0"),
        (r"^(image_encoder\.neck)\.layer_norm1", r"\1.1"),
        (r"^(image_encoder\.neck)\.conv2", r"\1.2"),
        (r"^(image_encoder\.neck)\.layer_norm2", r"\1.3"),
        (r"\.shared_embedding\.positional_embedding", f".{_POINT_ENCODING}"),
        (r"\.point_embed\.", ".point_embeddings."),
        (r"\.mask_embed\.conv1", ".mask_downscaling.0"),
        (r"\.mask_embed\.layer_norm1", ".mask_downscaling.1"),
        (r"\.mask_embed\.conv2", ".mask_downscaling.3"),
        (r"\.mask_embed\.layer_norm2", ".mask_downscaling.4"),
        (r"\.mask_embed\.conv3", ".mask_downscaling.6"),
        (r"\.upscale_conv1", ".output_upscaling.0"),
        (r"\.upscale_layer_norm", ".output_upscaling.1"),
        (r"\.upscale_conv2", ".output_upscaling.3"),
        # the perceptrons of the heads: proj_in, layers.0, proj_out
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0", r".\1.layers.1"),
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_in", r".\1.layers.0"),
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_out", r".\1.layers.2"),
        (r"\.layer_norm(\d|_final_attn)", r".norm\1"),
    ),
    {"shared_image_embedding.positional_embedding": f"prompt_encoder.{_POINT_ENCODING}"},
)  # fmt: skip

#: `CPSAM` of cellpose (checked with 4.2.1): the encoder of segment-anything and a head of its own.
CELLPOSE = Naming(
    "Cellpose names",
    "encoder.neck.0.weight",
    ((r"^encoder\.", "image_encoder."),),
    beside=frozenset(("out.weight", "out.bias", "W2", "diam_labels", "diam_mean")),
    stretch_positions=True,
)

NAMINGS = (SEGMENT_ANYTHING, HUGGING_FACE, CELLPOSE)


@dataclass(frozen=True)
class Recognised:
    """How the tensors of a checkpoint are named.

    Args:
        naming: entry of `NAMINGS`.
        prefix: what stands before every name, such as `module.`.
        keys: the checkpoint's key of every segment-anything name.
        others: keys that are not the model's: heads, optimisers and the like.
    """

    naming: Naming
    prefix: str
    keys: Mapping[str, str]
    others: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Such as `Hugging Face names below 'module.', 314 tensors`; SAM-HQ is said before."""
        below = f" below {self.prefix!r}" if self.prefix else ""
        hq = "SAM-HQ, " if is_hq(self.keys) else ""
        return f"{hq}{self.naming.title}{below}, {len(self.keys)} tensors"


def recognise(keys: Iterable[str]) -> Recognised | None:
    """Find the names and the prefix of a checkpoint's keys; None where it is no SAM.

    Raises:
        ValueError: it holds several models, or two keys for one tensor.
    """
    keys = list(keys)
    found = [
        (naming, key.removesuffix(naming.landmark))
        for naming in NAMINGS
        for key in keys
        if key == naming.landmark or key.endswith(f".{naming.landmark}")
    ]
    if not found:
        return None
    if len(found) > 1:
        places = " and ".join(f"{prefix + naming.landmark}" for naming, prefix in found)
        raise ValueError(f"holds several models ({places})")
    ((naming, prefix),) = found
    names: dict[str, str] = {}
    for key in keys:
        plain = key.removeprefix(prefix)
        if not key.startswith(prefix) or plain in naming.copies or plain in naming.beside:
            continue
        name = naming.rename(plain)
        if name in names:
            raise ValueError(f"has two tensors for {name} ({names[name]} and {key})")
        names[name] = key
    for plain, name in naming.copies.items():
        if prefix + plain in keys:
            names.setdefault(name, prefix + plain)
    others = tuple(
        key
        for key in keys
        if not key.startswith(prefix) or key.removeprefix(prefix) in naming.beside
    )
    return Recognised(naming, prefix, names, others)


def is_hq(keys: Iterable[str]) -> bool:
    """Whether segment-anything names are those of SAM-HQ, all of them or some."""
    return any(key.startswith(HQ_PREFIXES) for key in keys)


def what_else(keys: Iterable[str]) -> str | None:
    """Return what keys that `recognise` does not know are, with a way out, where that is known."""
    found = list(keys)
    for end, what in _OTHERS.items():
        if any(key == end or key.endswith(f".{end}") for key in found):
            return what
    return None


def lora_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys that low-rank adapters (LoRA) usually have."""
    return [key for key in keys if _LORA.search(key)]
