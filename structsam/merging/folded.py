"""How wide a head gets when relative positions are folded into it; counted without torch."""

from __future__ import annotations


def folded_channels(grid: tuple[int, int], head_dim: int, proportional: bool) -> int:
    """Channels that the folded form adds to a head: H + W (+ 1), up to a multiple of 8 in all."""
    extra = grid[0] + grid[1] + int(proportional)
    return extra + -(head_dim + extra) % 8
