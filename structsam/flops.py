"""Multiply-adds of SAM's image encoder with merging inside, counted from the geometry alone.

Convention (fvcore's, and the papers'): one multiply-add is one unit, LayerNorm costs 5 units per
element, and softmax, GELU, additions, gathers and the neck's LayerNorm2d cost nothing. Units are
counted for one image. Merging's own work (energy, ranks, cell means) is counted as overhead.

Letters: N tokens and M slots of one map, C channels, h heads of d channels, H W grid of one map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from structsam.config import MergeConfig
from structsam.methods import find_method
from structsam.models.spec import ModelSpec

_NECK_CHANNELS = 256
_NORM_UNITS = 5


@dataclass(frozen=True)
class BlockFlops:
    """Multiply-adds of one transformer block.

    Args:
        maps: token maps that attend separately: 1, or the number of windows.
        tokens: N of one map, padding included.
        slots: M of one map, the tokens that are kept.
        relative: products of queries with relative positions.
        norm: both LayerNorms, 5 units per element.
        overhead: what merging itself costs.
        folded_extra: multiply-adds of the folded attention form beyond `qk_av` and `relative`;
            not part of `total`.
        logits: elements of the attention matrices, h*M*M per map: memory where attention is not
            fused.
        widest: elements of the largest activation where attention is fused: q, k and v together,
            or the MLP's hidden layer.
        traffic: elements that the matrix products read and write when attention is fused,
            weights excluded.
    """

    index: int
    kind: str
    rate: float
    maps: int
    tokens: int
    slots: int
    qkv: int
    qk_av: int
    relative: int
    proj: int
    mlp: int
    norm: int
    overhead: int
    folded_extra: int
    logits: int
    widest: int
    traffic: int

    @property
    def total(self) -> int:
        """All counted multiply-adds of the block."""
        attention = self.qkv + self.qk_av + self.relative + self.proj
        return attention + self.mlp + self.norm + self.overhead

    @property
    def kept(self) -> float:
        """Share of the tokens that is left, M / N; beside `rate`, which rounds to whole cells."""
        return self.slots / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form with `total` and `kept`."""
        return {**vars(self), "total": self.total, "kept": self.kept}


@dataclass(frozen=True)
class EncoderFlops:
    """Multiply-adds of one encoder for one image; see the module for the convention."""

    model: str
    method: str
    attention: str
    patch_embedding: int
    neck: int
    blocks: tuple[BlockFlops, ...] = field(repr=False)

    @property
    def total(self) -> int:
        """What papers report, merging's overhead included and `folded_extra` excluded."""
        return self.patch_embedding + self.neck + sum(block.total for block in self.blocks)

    @property
    def folded_extra(self) -> int:
        """Multiply-adds that run beyond `total` because attention is folded (0 for dense)."""
        return sum(block.folded_extra for block in self.blocks)

    @property
    def executed(self) -> int:
        """What really runs: `total` and `folded_extra`."""
        return self.total + self.folded_extra

    @property
    def overhead(self) -> int:
        """The part of `total` that merging itself costs."""
        return sum(block.overhead for block in self.blocks)

    @property
    def gmac(self) -> float:
        """`total` in units of 10^9."""
        return self.total / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form, in multiply-adds; the keys in GMAC say so."""
        return {
            "convention": "one multiply-add = 1, LayerNorm 5 per element, as fvcore counts",
            "model": self.model,
            "method": self.method,
            "attention": self.attention,
            "total_gmac": round(self.total / 1e9, 4),
            "executed_gmac": round(self.executed / 1e9, 4),
            "total": self.total,
            "folded_extra": self.folded_extra,
            "executed": self.executed,
            "overhead": self.overhead,
            "patch_embedding": self.patch_embedding,
            "neck": self.neck,
            "blocks": [block.to_dict() for block in self.blocks],
        }


def encoder_flops(spec: ModelSpec, config: MergeConfig) -> EncoderFlops:
    """Count an encoder's multiply-adds as this package runs it, the projection before unmerging.

    Raises:
        UserError: the configuration does not fit the model (block index, number of rates).
    """
    is_global = [index in spec.global_blocks for index in range(spec.depth)]
    rates = config.block_rates(is_global)
    height, width = spec.grid
    tokens, channels = height * width, spec.embed_dim
    pixels = 3 * spec.patch_size**2
    neck = channels * _NECK_CHANNELS + 9 * _NECK_CHANNELS**2  # 1x1, then 3x3 convolution
    return EncoderFlops(
        model=spec.name,
        method=config.method if any(rates) else "none",
        attention=config.attention,
        patch_embedding=tokens * channels * pixels,
        neck=tokens * neck,
        blocks=tuple(
            _block(spec, config, index, whole, rate)
            for index, (whole, rate) in enumerate(zip(is_global, rates, strict=True))
        ),
    )


def unmerged_flops(spec: ModelSpec) -> EncoderFlops:
    """Count the stock encoder."""
    return encoder_flops(spec, MergeConfig(rate=0.0, attention="dense"))


def _block(
    spec: ModelSpec, config: MergeConfig, index: int, whole: bool, rate: float
) -> BlockFlops:
    channels, heads, dim = spec.embed_dim, spec.num_heads, spec.head_dim
    height, width = spec.grid
    image_tokens = height * width
    if whole:
        grid, maps = spec.grid, 1
    else:
        side = spec.window_size
        grid, maps = (side, side), -(-height // side) * -(-width // side)
    method = find_method(config.method)(grid=grid, rate=rate) if rate else None
    tokens = grid[0] * grid[1]
    slots = method.num_slots if method else tokens
    rows = maps * slots
    logits = heads * maps * slots**2
    positions = grid[0] + grid[1]
    folded = positions + -(dim + positions) % 8  # channels that the folded form adds to d
    extra = folded if config.attention == "folded" else 0
    return BlockFlops(
        index=index,
        kind="global" if whole else "window",
        rate=rate,
        maps=maps,
        tokens=tokens,
        slots=slots,
        qkv=3 * rows * channels**2,
        qk_av=2 * logits * dim,
        relative=rows * channels * positions,
        proj=rows * channels**2,
        mlp=8 * image_tokens * channels**2,
        norm=2 * _NORM_UNITS * image_tokens * channels,
        overhead=maps * method.overhead_macs(channels) if method else 0,
        folded_extra=logits * extra,
        logits=logits,
        widest=max(3 * rows, 4 * image_tokens) * channels,
        # qkv reads C and writes 3C; attention reads 3C and writes C, and q and k grow by `extra`;
        # the projection C and C; the MLP C, 4C, 4C and C
        traffic=rows * (10 * channels + 2 * heads * extra) + image_tokens * 10 * channels,
    )
