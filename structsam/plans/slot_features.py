"""What a slot's feature is: a mean, one of its tokens, or the largest magnitude per channel.

A method chooses one of these and fills in the indices. None of them scatters: ONNX has no
mean-scatter, and TensorRT no scatter with a reduction.

Letters: B maps, N tokens, M slots, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class SlotFeatures(Protocol):
    """Anything that turns tokens [B, N, C] into slots [B, M, C]."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return [B, M, C] in the type of `tokens`."""
        ...


@dataclass(frozen=True)
class CellMean:
    """Means of whole cells, then single tokens; nothing is read but what is needed.

    Args:
        cell: side s of the square cells.
        strips: [..., K, s] int64 in 0..N/s-1, the rows of the cells of the first K slots; strip i
            is the tokens i*s to i*s + s - 1, side by side on the grid.
        kept_tokens: [..., M - K] int64, the tokens of the other slots.
    """

    cell: int
    strips: Tensor
    kept_tokens: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Average the cells [..., N, C] and append the single tokens: [..., M, C]."""
        s, channels = self.cell, tokens.shape[-1]
        strips = gather_rows(tokens.unflatten(-2, (-1, s)).flatten(-2), self.strips.flatten(-2))
        cells = strips.reshape(*self.strips.shape[:-1], s * s, channels)
        return torch.cat([cells.mean(-2), gather_rows(tokens, self.kept_tokens)], -2)

    @property
    def parts(self) -> tuple[int, int]:
        """K slots of cells, M - K slots of single tokens."""
        return self.strips.shape[-2], self.kept_tokens.shape[-1]

    def of_table(self, row_of_token: Tensor) -> CellMean:
        """Return the same features, read from one table [R, C] that holds the tokens of all maps.

        Args:
            row_of_token: [B, N] int64; a strip of the map is one of the table.
        """
        first = row_of_token[:, :: self.cell]
        row_of_strip = torch.div(first, self.cell, rounding_mode="floor")
        strips = row_of_strip.gather(1, self.strips.flatten(1)).reshape(self.strips.shape)
        return CellMean(self.cell, strips, row_of_token.gather(1, self.kept_tokens))


@dataclass(frozen=True)
class MatchedMean:
    """Kept tokens, then destinations averaged with the sources that were matched to them.

    The sum over a data-dependent number of sources is a product with a one-hot matrix [D, R].

    Args:
        kept: [B, M - D] int64, tokens that stay as they are.
        destinations: [B, D] int64.
        sources: [B, R] int64, tokens that are merged.
        match: [B, R] int64 in 0..D-1, the destination of every source.
        weights: [B, N] how many original tokens every token stands for; None means one each.
    """

    kept: Tensor
    destinations: Tensor
    sources: Tensor
    match: Tensor
    weights: Tensor | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Average destinations with their sources."""
        kept = gather_rows(tokens, self.kept)
        mean = gather_rows(tokens, self.destinations)
        if self.sources.shape[1]:
            weight_of_source = one_hot_match(self.match, self.destinations.shape[1])  # [B, D, R]
            own = weight_of_source.new_ones(1, 1)
            if self.weights is not None:
                weights = self.weights.float()
                own = weights.gather(1, self.destinations)
                weight_of_source = weight_of_source * weights.gather(1, self.sources).unsqueeze(1)
            total = own + weight_of_source.sum(-1)  # [B, D]
            # the product runs in the tokens' type: an FP16 graph must hold no FP32 matmul
            share = (weight_of_source / total.unsqueeze(-1)).to(tokens.dtype)
            own = (own / total).unsqueeze(-1).to(tokens.dtype)
            mean = own * mean + share @ gather_rows(tokens, self.sources)
        return torch.cat([kept, mean], 1)


@dataclass(frozen=True)
class OneToken:
    """The slot's feature is that of a single token ("replace": the others are dropped).

    Args:
        token_of_slot: [B, M] int64.
    """

    token_of_slot: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take one token per slot."""
        return gather_rows(tokens, self.token_of_slot)


@dataclass(frozen=True)
class SlotMean:
    """The mean of every slot's tokens, from the slots alone; it scatters, so it is not exported.

    Args:
        slot_of_token: [B, N] int64 in 0..M-1.
        num_slots: M.
    """

    slot_of_token: Tensor
    num_slots: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """Average the tokens of every slot."""
        batch, _, channels = tokens.shape
        slot = self.slot_of_token.unsqueeze(-1)
        total = tokens.new_zeros(batch, self.num_slots, channels)
        total.scatter_add_(1, slot.expand_as(tokens), tokens)
        size = tokens.new_zeros(batch, self.num_slots, 1)
        return total / size.scatter_add_(1, slot, torch.ones_like(slot, dtype=tokens.dtype))


@dataclass(frozen=True)
class InTurn:
    """One step after the other: the second merges what the first has merged."""

    first: SlotFeatures
    second: SlotFeatures

    def __call__(self, tokens: Tensor) -> Tensor:
        """Merge twice."""
        return self.second(self.first(tokens))


def one_hot_match(match: Tensor, num_destinations: int) -> Tensor:
    """Return [B, D, R] float32: 1 where source r goes to destination d."""
    wanted = torch.arange(num_destinations, device=match.device)
    return (match.unsqueeze(1) == wanted[:, None]).float()


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Pick rows map by map: table [B, R, C], index [B, K] in 0..R-1 -> [B, K, C].

    One table [R, C] serves an index of any shape. The rows are gathered from the flattened [B*R, C]
    table, which exports as one ONNX `Gather` on axis 0; an index expanded over the channels would
    be C times as large.
    """
    if table.dim() == 3 and len(table) > 1:
        batch, rows = table.shape[:2]
        first_row = torch.arange(0, batch * rows, rows, device=index.device)
        index = index + first_row[:, None]
    picked = table.reshape(-1, table.shape[-1]).index_select(0, index.reshape(-1))
    return picked.reshape(*index.shape, table.shape[-1])
