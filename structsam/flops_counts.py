"""Multiply-adds of an encoder's parts. They are counted, and the convention told, in `flops.py`.

Letters: N tokens and M slots of one map, C channels, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from structsam.methods.cost import MergeCost


@dataclass(frozen=True)
class TierFlops:
    """Maps of a block that merge equally much: `maps` of them keep `slots` tokens each."""

    rate: float
    maps: int
    slots: int


@dataclass(frozen=True)
class BlockFlops:
    """Multiply-adds of one transformer block.

    Args:
        rate: the share of tokens that was asked to go; of all maps where these form tiers.
        maps: token maps that attend separately: 1, or the number of windows.
        tokens: N of one map, padding included.
        tiers: how many maps keep how many tokens; more than one only with a prompt box.
        relative: products of queries with relative positions.
        norm: both LayerNorms, 5 units per element.
        energy: scoring tokens before they are merged.
        matching: products that look for similar tokens.
        pooling: products that average tokens into their slots.
        folded_extra: multiply-adds of the folded attention form beyond `qk_av` and `relative`;
            not part of `total`.
        skipped: multiply-adds of `total` that do not run: those of slots known to be padding.
        logits: elements of the attention matrices, h*M*M per map: memory where attention is not
            fused.
        widest: elements of the largest activation where attention is fused: q, k and v together,
            or the MLP's hidden layer. The merge step's own matrices are left out.
        traffic: elements that the matrix products read and write when attention is fused,
            without weights and without the merge step.
        mask: elements of the additive mask, written and read; part of `traffic`.
        mlp_traffic: the MLP's part of `traffic`.
        plans: whether this block decides what merges; in placement `stage` only the first does.
    """

    index: int
    kind: str
    rate: float
    maps: int
    tokens: int
    tiers: tuple[TierFlops, ...]
    qkv: int
    qk_av: int
    relative: int
    proj: int
    mlp: int
    norm: int
    energy: int
    matching: int
    pooling: int
    folded_extra: int
    skipped: int
    logits: int
    widest: int
    traffic: int
    mask: int
    mlp_traffic: int
    plans: bool

    @property
    def overhead(self) -> int:
        """What merging itself costs: `energy`, `matching` and `pooling`."""
        return self.energy + self.matching + self.pooling

    @property
    def total(self) -> int:
        """All counted multiply-adds of the block."""
        attention = self.qkv + self.qk_av + self.relative + self.proj
        return attention + self.mlp + self.norm + self.overhead

    @property
    def slots(self) -> int:
        """M, the tokens that one map keeps; rounded mean of the maps where these form tiers."""
        return round(self.kept * self.tokens)

    @property
    def kept(self) -> float:
        """Share of the tokens that is left; beside `rate`, which rounds to whole groups."""
        return sum(tier.maps * tier.slots for tier in self.tiers) / (self.maps * self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form with what follows from the fields."""
        derived = {name: getattr(self, name) for name in ("slots", "kept", "overhead", "total")}
        return {**vars(self), "tiers": [vars(tier) for tier in self.tiers], **derived}


@dataclass(frozen=True)
class EncoderFlops:
    """Multiply-adds of one encoder for one image; see the module for the convention."""

    model: str
    method: str
    attention: str
    placement: str
    patch_embedding: int
    neck: int
    blocks: tuple[BlockFlops, ...] = field(repr=False)

    @property
    def total(self) -> int:
        """What papers report, the merge step included and `folded_extra` excluded."""
        return self.patch_embedding + self.neck + sum(block.total for block in self.blocks)

    @property
    def folded_extra(self) -> int:
        """Multiply-adds that run beyond `total` because attention is folded (0 for dense)."""
        return self.sum("folded_extra")

    @property
    def skipped(self) -> int:
        """Multiply-adds of `total` that do not run (padding)."""
        return self.sum("skipped")

    @property
    def executed(self) -> int:
        """What really runs: `total` and `folded_extra`, without `skipped`."""
        return self.total + self.folded_extra - self.skipped

    @property
    def overhead(self) -> int:
        """The part of `total` that merging itself costs."""
        return self.sum("overhead")

    @property
    def gmac(self) -> float:
        """`total` in units of 10^9."""
        return self.total / 1e9

    def sum(self, part: str) -> int:
        """Add up a part of all blocks, such as `matching` or `qkv`."""
        return sum(getattr(block, part) for block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form, in multiply-adds; the keys in GMAC say so."""
        return {
            "convention": "one multiply-add = 1, LayerNorm 5 per element, as fvcore counts",
            "model": self.model,
            "method": self.method,
            "attention": self.attention,
            "placement": self.placement,
            "total_gmac": round(self.total / 1e9, 4),
            "executed_gmac": round(self.executed / 1e9, 4),
            "total": self.total,
            "folded_extra": self.folded_extra,
            "skipped": self.skipped,
            "executed": self.executed,
            "overhead": self.overhead,
            **{part.name: self.sum(part.name) for part in fields(MergeCost)},
            "patch_embedding": self.patch_embedding,
            "neck": self.neck,
            "blocks": [block.to_dict() for block in self.blocks],
        }
