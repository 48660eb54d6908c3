"""Cells: the s x s squares that a token grid is cut into.

Letters: B maps, H W token grid, N = H*W tokens, s side of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structsam.plans.constants import constant
from structsam.plans.plan import MergePlan
from structsam.plans.ranking import invert_ranks, rank_ascending
from structsam.plans.slot_features import CellMean, gather_rows


def cells_of(values: Tensor, grid: tuple[int, int], s: int) -> Tensor:
    """Group per-token values [B, N, ...] by cell: [B, N/s^2, s^2, ...], row-major in the cell."""
    height, width = grid
    batch, rest = values.shape[0], values.shape[2:]
    cells = values.reshape(batch, height // s, s, width // s, s, *rest).transpose(2, 3)
    return cells.reshape(batch, height * width // s**2, s * s, *rest)


def tokens_of_cells(grid: tuple[int, int], s: int, like: Tensor) -> Tensor:
    """Row-major grid position of every token of every cell, [N/s^2, s^2] int64, beside `like`."""
    return constant(_tokens_of_cells, grid, s, like=like)


def _tokens_of_cells(grid: tuple[int, int], s: int, device: torch.device) -> Tensor:
    position = torch.arange(grid[0] * grid[1], device=device)
    return cells_of(position.unsqueeze(0), grid, s).squeeze(0)


def first_of_cells(score: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split a map into the token of least score of every 2x2 cell, and all the others.

    Args:
        score: [B, N]; ties go to the lower index.

    Returns:
        The first [B, N/4] and the others [B, 3N/4], int64 positions, cell by cell.
    """
    rank = rank_ascending(cells_of(score, grid, 2))  # [B, N/4, 4]
    place = (torch.where(rank == 0, torch.arange(4, device=rank.device), 0)).sum(-1)
    rest = constant(_other_places, like=rank)[place]  # [B, N/4, 3]
    table = tokens_of_cells(grid, 2, rank)
    start = 4 * torch.arange(table.shape[0], device=rank.device)
    tokens = table.flatten()
    return tokens[start + place], tokens[start[:, None] + rest].flatten(1)


def merge_first_cells(
    grid: tuple[int, int], s: int, rank: Tensor, merged: int, anchor_of_cell: Tensor
) -> MergePlan:
    """Merge the cells of rank below `merged` into their means; every other token stays.

    Slots are the merged cells in rank order, and then s^2 for every other cell in rank order, so
    that they follow from the ranks by arithmetic.

    Args:
        rank: [B, N/s^2] int64, a permutation.
        anchor_of_cell: [B, N/s^2] or [N/s^2] grid position that stands for a merged cell.
    """
    height, width = grid
    batch = rank.shape[0]
    ranked_cell = invert_ranks(rank)
    table = tokens_of_cells(grid, s, rank)
    strips = torch.div(table[:, ::s], s, rounding_mode="floor")
    first_slot = torch.where(rank < merged, rank, merged + (rank - merged) * s * s)
    local = torch.where((rank < merged)[:, :, None], 0, torch.arange(s * s, device=rank.device))
    slot = (first_slot[:, :, None] + local).reshape(batch, height // s, width // s, s, s)
    merged_cells, kept_cells = ranked_cell[:, :merged], ranked_cell[:, merged:]
    kept_tokens = gather_rows(table, kept_cells).flatten(1)
    anchors = anchor_of_cell.expand(batch, -1).gather(1, merged_cells)
    sizes = constant(_sizes, s * s, merged, kept_tokens.shape[1], like=rank)
    return MergePlan(
        grid=grid,
        slot_of_token=slot.transpose(2, 3).reshape(batch, height * width),
        anchor_of_slot=torch.cat([anchors, kept_tokens], 1),
        size_of_slot=sizes.expand(batch, -1),
        features=CellMean(s, gather_rows(strips, merged_cells), kept_tokens),
    )


def _sizes(of_cell: int, cells: int, single: int, device: torch.device) -> Tensor:
    return torch.tensor([of_cell] * cells + [1] * single, device=device)


def _other_places(device: torch.device) -> Tensor:
    """The places in a 2x2 cell that are left when one of the four is taken, [4, 3]."""
    return torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], device=device)
