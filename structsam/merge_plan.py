"""MergePlan: which tokens share a slot. The only code that moves tokens.

A plan is index data of static shape, so it can be printed, tested, drawn, exported and compared
between backends. Letters: B maps, H W token grid, N = H*W tokens, M slots, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MergePlan:
    """Assignment of N tokens to M slots.

    Args:
        grid: (H, W).
        cell: side s of the square cells whose means are candidates for a slot.
        slot_of_token: [B, N] int64 in 0..M-1, tokens in row-major order of the grid.
        anchor_of_slot: [B, M] int64 in 0..N-1, the grid position that stands for the slot.
        source_of_slot: [B, M] int64, row of the slot's feature among the candidates, which are
            the N/s^2 cell means followed by the N tokens.
    """

    grid: tuple[int, int]
    cell: int
    slot_of_token: Tensor
    anchor_of_slot: Tensor
    source_of_slot: Tensor

    @property
    def num_slots(self) -> int:
        """M, a Python int."""
        return self.anchor_of_slot.shape[1]

    def merge(self, tokens: Tensor) -> Tensor:
        """Average the tokens of every slot: [B, N, C] -> [B, M, C]."""
        height, width = self.grid
        batch, _, channels = tokens.shape
        s = self.cell
        # [B, N, C] -> [B, H/s, s, W/s, s, C] -> cell means [B, N/s^2, C]
        cells = tokens.reshape(batch, height // s, s, width // s, s, channels).mean((2, 4))
        candidates = torch.cat([cells.flatten(1, 2), tokens], 1)
        return gather_rows(candidates, self.source_of_slot)

    def unmerge(self, merged: Tensor) -> Tensor:
        """Give every token its slot's row: [B, M, C] -> [B, N, C]."""
        return gather_rows(merged, self.slot_of_token)


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


def rank_ascending(values: Tensor) -> Tensor:
    """Return the rank of every value along the last axis, ties to the lower index.

    Ranks are counted (`rank_i = #{j: v_j < v_i or (v_j = v_i and j < i)}`): exact, the same on
    every runtime, and without TensorRT's TopK limit of 3840. The cost is n^2 compares.

    Args:
        values: [..., n], no NaN, n < 2^24.

    Returns:
        [..., n] int64, a permutation of 0..n-1.
    """
    n = values.shape[-1]
    mine, other = values.unsqueeze(-1), values.unsqueeze(-2)
    position = torch.arange(n, device=values.device)
    earlier = position[None, :] < position[:, None]  # [i, j]: j < i
    before = (other < mine) | ((other == mine) & earlier)
    return before.float().sum(-1).long()


def invert_ranks(rank: Tensor) -> Tensor:
    """Return which element has rank 0, 1, ...: the inverse of a permutation [..., n] int64."""
    position = torch.arange(rank.shape[-1], device=rank.device)
    has_rank = rank.unsqueeze(-2) == position[:, None]  # [..., wanted rank, element]
    # A masked sum, not a matmul: TensorRT for RTX has no FP32 matmul on Turing.
    return torch.where(has_rank, position.float(), 0.0).sum(-1).long()
