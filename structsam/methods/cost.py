"""What a merge step costs in multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergeCost:
    """Multiply-adds of one map's merge step; comparisons, gathers and plain sums count nothing.

    Args:
        energy: scoring tokens by their neighbours, element by element.
        matching: products of token features that look for similar tokens.
        pooling: products with a one-hot matrix that average tokens into their slots.
    """

    energy: int = 0
    matching: int = 0
    pooling: int = 0

    @property
    def total(self) -> int:
        """All three."""
        return self.energy + self.matching + self.pooling


def matching_cost(
    sources: int,
    destinations: int,
    averaged: int,
    channels: int,
    metric_channels: int,
    energy: int = 0,
) -> MergeCost:
    """Count a comparison of all sources with all destinations and the one-hot product of a mean.

    Args:
        averaged: sources that are averaged into destinations; 0 where they are dropped.
        channels: C of the tokens that are merged.
        metric_channels: channels of the tokens that are compared.
    """
    return MergeCost(
        energy=energy,
        matching=sources * destinations * metric_channels,
        pooling=averaged * destinations * channels,
    )


def energy_cost(operator: str, tokens: int, channels: int) -> int:
    """Multiply-adds that the literature counts: 18 per token and channel for Sobel (two 3x3).

    Central differences count nothing in fvcore's convention: they are one subtraction.
    """
    return 18 * tokens * channels if operator == "sobel" else 0
