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
    """Means of whole cells, then single tokens: one row gather each.

    Args:
        grid: (H, W).
        cell: side s of the square cells.
        merged_cells: [B, K] int64 in 0..N/s^2-1, the cells of the first K slots.
        kept_tokens: [B, M - K] int64, the tokens of the others.
    """

    grid: tuple[int, int]
    cell: int
    merged_cells: Tensor
    kept_tokens: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Gather the cells' means and the single tokens."""
        height, width = self.grid
        batch, _, channels = tokens.shape
        s = self.cell
        # [B, N, C] -> [B, H/s, s, W/s, s, C] -> means of all cells [B, N/s^2, C]
        means = tokens.reshape(batch, height // s, s, width // s, s, channels).mean((2, 4))
        merged = gather_rows(means.flatten(1, 2), self.merged_cells)
        return torch.cat([merged, gather_rows(tokens, self.kept_tokens)], 1)


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

    The rows are gathered from the flattened [B*R, C] table, which exports as one ONNX `Gather`
    on axis 0; an index expanded over the channels would be C times as large.
    """
    batch, rows, channels = table.shape
    if batch > 1:
        first_row = torch.arange(0, batch * rows, rows, device=index.device)
        index = index + first_row[:, None]
    picked = table.reshape(batch * rows, channels).index_select(0, index.reshape(-1))
    return picked.reshape(batch, index.shape[1], channels)
