"""Orders of scores by counting: exact, the same on every runtime, and without any sort.

TensorRT's TopK refuses more than 3840 elements and promises nothing about ties; a sort of 4096
tokens cannot be built at all. Counting costs n^2 compares and has neither limit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structsam.plans.constants import constant

#: Up to this many elements a permutation is inverted by comparing all pairs, which fuses with what
#: is around it; above, by a scatter. The cells of SAM's global grid, 1024, are still below.
_LARGEST_COMPARISON = 1024


def rank_ascending(values: Tensor, tier: Tensor | None = None) -> Tensor:
    """Return the rank of every value along the last axis, ties to the lower index.

    `rank_i = #{j: v_j < v_i or (v_j = v_i and j < i)}`

    NaN counts as the largest finite number: what follows reads places from the ranks, and NaN
    elsewhere must come out as NaN and not as a read beyond the end.

    Args:
        values: [..., n] of a float type, n < 2^24.
        tier: [..., n] bool; when given, all elements that are False come before all that are True.

    Returns:
        [..., n] int64, a permutation of 0..n-1.
    """
    n = values.shape[-1]
    values = torch.where(values == values, values, torch.finfo(values.dtype).max)
    mine, other = values.unsqueeze(-1), values.unsqueeze(-2)
    if n <= _LARGEST_COMPARISON:
        earlier = constant(_earlier, n, like=values)
    else:  # it is too large to keep
        earlier = _earlier(n, values.device)
    before = (other < mine) | ((other == mine) & earlier)
    if tier is not None:
        late, other_late = tier.unsqueeze(-1), tier.unsqueeze(-2)
        before = (late & ~other_late) | ((late == other_late) & before)
    return before.float().sum(-1).long()


def rank_descending(values: Tensor) -> Tensor:
    """Return the rank of every value, largest first, ties to the lower index; see above."""
    return rank_ascending(-values)


def invert_ranks(rank: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """Return which elements have the ranks `first`, ..., `last - 1` (all of them by default).

    Args:
        rank: [..., n] int64, a permutation of 0..n-1.

    Returns:
        [..., last - first] int64.
    """
    n = rank.shape[-1]
    position = constant(_positions, n, like=rank)
    if n > _LARGEST_COMPARISON:
        # every index occurs once, so the scatter needs no reduction and no order of writing
        inverse = torch.zeros_like(rank).scatter(-1, rank, position.expand(rank.shape))
        return inverse[..., first:last]
    has_rank = rank.unsqueeze(-2) == position[first:last, None]  # [..., wanted rank, element]
    # A masked sum, not a matmul: TensorRT for RTX has no FP32 matmul on Turing.
    return (has_rank.float() * position.float()).sum(-1).long()


def _positions(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device)


def _earlier(n: int, device: torch.device) -> Tensor:
    """Which elements [i, j] have j < i."""
    position = torch.arange(n, device=device)
    return position[None, :] < position[:, None]
