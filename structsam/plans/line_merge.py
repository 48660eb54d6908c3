"""One pass of CubistMerge: shorten every line of tokens by the same number (section 3).

Odd tokens are the only sources; each joins its more similar even neighbour. Letters: L lines of
t tokens, rho removed per line, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from structsam.plans.matching import BOTH_PADDING, REAL_AND_PADDING, unit_vectors
from structsam.plans.ranking import invert_ranks, rank_ascending, rank_descending
from structsam.plans.slot_features import gather_rows


@dataclass(frozen=True)
class LinePass:
    """What becomes of the tokens of L lines.

    Args:
        place_of_token: [L, t] int64 in 0..t-rho-1, the token's place in the shortened line.
        kept: [L, t - rho] int64, the tokens that keep a place, in their old order.
        goes_left: [L, t/2] bool, whether odd token 2j+1 joins its left neighbour.
        goes_right: [L, t/2] bool.
    """

    place_of_token: Tensor
    kept: Tensor
    goes_left: Tensor
    goes_right: Tensor

    def largest_magnitude(self, tokens: Tensor) -> Tensor:
        """Per channel the value of largest magnitude, sign kept: [L, t, C] -> [L, t-rho, C].

        Both neighbours of a destination are compared at once; a token that does not join counts
        as zero, which never wins. Of equal magnitudes the destination's own value stays.
        """
        from_left, from_right = self._joining(tokens)
        even = _larger(_larger(tokens[:, ::2], from_left), from_right)
        return self._keep(tokens, even)

    def total(self, tokens: Tensor) -> Tensor:
        """Sum of the tokens that share a place: [L, t, C] -> [L, t-rho, C]."""
        from_left, from_right = self._joining(tokens)
        return self._keep(tokens, tokens[:, ::2] + from_left + from_right)

    def _joining(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What every even token receives from either side, or zero: [L, ceil(t/2), C] each."""
        odd = tokens[:, 1::2]
        evens = tokens[:, ::2].shape[1]
        zero = torch.zeros_like(tokens[:, :1])
        rightward = torch.where(self.goes_right.unsqueeze(-1), odd, 0.0)
        leftward = torch.where(self.goes_left.unsqueeze(-1), odd, 0.0)
        from_left = torch.cat([zero, rightward], 1)[:, :evens]
        from_right = torch.cat([leftward, zero], 1)[:, :evens]
        return from_left, from_right

    def _keep(self, tokens: Tensor, even: Tensor) -> Tensor:
        """Put the new even tokens beside the old odd ones and take the kept ones in order."""
        evens = even.shape[1]
        place = torch.where(self.kept % 2 == 0, self.kept // 2, evens + self.kept // 2)
        return gather_rows(torch.cat([even, tokens[:, 1::2]], 1), place)


def line_pass(tokens: Tensor, removed: int, padding: Tensor | None = None) -> LinePass:
    """Choose which odd tokens join which neighbour.

    Args:
        tokens: [L, t, C], compared by cosine in float32.
        removed: rho, at most t // 2.
        padding: [L, t] bool; padding joins padding only, and first.
    """
    lines, length, _ = tokens.shape
    unit = unit_vectors(tokens.float())
    near = (unit[:, :-1] * unit[:, 1:]).sum(-1)  # [L, t - 1]: tokens i and i + 1
    if padding is not None:
        a, b = padding[:, :-1], padding[:, 1:]
        near = torch.where(a & b, BOTH_PADDING, near)
        near = torch.where(a ^ b, REAL_AND_PADDING, near)
    left, right = near[:, ::2], near[:, 1::2]  # of odd token 2j + 1
    if right.shape[1] < left.shape[1]:  # the last odd token has no right neighbour
        nothing = torch.full_like(left[:, :1], 2 * REAL_AND_PADDING)
        right = torch.cat([right, nothing], 1)
    chosen = rank_descending(torch.maximum(left, right)) < removed  # [L, t // 2]
    to_right = right > left

    # [L, t]: odd tokens that leave their place
    leaves = torch.stack([torch.zeros_like(chosen), chosen], -1).flatten(1)
    if leaves.shape[1] < length:
        leaves = torch.cat([leaves, leaves.new_zeros(lines, 1)], 1)
    position = torch.arange(length, device=tokens.device)
    rank = rank_ascending(position.float().expand(lines, -1), leaves)  # those that stay, in order
    odd = position[1::2]
    neighbour = torch.where(to_right, odd + 1, odd - 1)  # of every odd token
    place = torch.where(chosen, rank.gather(1, neighbour.clamp(max=length - 1)), rank[:, 1::2])
    places = torch.stack([rank[:, : 2 * place.shape[1] : 2], place], -1).flatten(1)
    if places.shape[1] < length:
        places = torch.cat([places, rank[:, -1:]], 1)
    return LinePass(
        place_of_token=places,
        kept=invert_ranks(rank, 0, length - removed),
        goes_left=chosen & ~to_right,
        goes_right=chosen & to_right,
    )


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b.abs() > a.abs(), b, a)
