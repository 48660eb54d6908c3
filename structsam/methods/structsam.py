"""StructSAM: merge the flattest cells, keep the others whole (arXiv 2603.07307, Algorithm 1).

The map is cut into s x s cells. A cell's energy is the largest gradient energy in it; the cells
of least energy are merged, each into the mean of its tokens, and stand where their flattest token
stood. No similarity, no sort, no scatter: ranks are counted, slots follow from ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structsam.errors import UserError
from structsam.gradient_energy import sobel_energy
from structsam.merge_plan import MergePlan, invert_ranks, rank_ascending
from structsam.methods.base import MergeMethod


@dataclass(frozen=True)
class StructSAM(MergeMethod):
    """Cell merging by gradient energy; see the module docstring. Cells are 2 x 2."""

    name: ClassVar[str] = "structsam"
    max_rate: ClassVar[float] = 0.75
    cell: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.grid
        if height < 1 or width < 1 or height % self.cell or width % self.cell:
            raise UserError(
                f"a token grid of {height}x{width} cannot be cut into cells of "
                f"{self.cell}x{self.cell}. Use a grid with even sides"
            )

    @property
    def num_cells(self) -> int:
        """Cells in the map, N / s^2."""
        return self.num_tokens // self.cell**2

    @property
    def num_merged_cells(self) -> int:
        """`ceil(rate * N / (s^2 - 1))` (Algorithm 1); the guard absorbs the product's rounding."""
        return math.ceil(self.rate * self.num_tokens / (self.cell**2 - 1) - 1e-9)

    @property
    def num_slots(self) -> int:
        """M = merged cells + s^2 * protected cells."""
        return self.num_tokens - self.num_merged_cells * (self.cell**2 - 1)

    def token_energy(self, feature_map: Tensor) -> Tensor:
        """Sobel energy [B, H', W'] of the whole map, borders replicated."""
        return sobel_energy(feature_map)

    def plan(self, tokens: Tensor, energy: Tensor | None = None) -> MergePlan:
        """Merge the cells of least energy; ties go to the lower index."""
        batch = tokens.shape[0]
        height, width = self.grid
        s, merged = self.cell, self.num_merged_cells
        if energy is None:
            energy = self.token_energy(tokens.reshape(batch, height, width, -1))
        # [B, N] -> [B, N/s^2, s^2]: the tokens of every cell, row-major inside the cell
        in_cell = energy.reshape(batch, height // s, s, width // s, s).permute(0, 1, 3, 2, 4)
        in_cell = in_cell.reshape(batch, self.num_cells, s * s)

        rank = rank_ascending(in_cell.amax(-1))  # [B, N/s^2]
        ranked_cell = invert_ranks(rank)
        token_table = self._tokens_of_cell(tokens.device)
        is_flattest = rank_ascending(in_cell) == 0  # [B, N/s^2, s^2]
        anchor_of_cell = (is_flattest * token_table).sum(-1)  # [B, N/s^2]

        # Slots: rank for a merged cell; s^2 slots in rank order for every protected cell.
        first_slot = torch.where(rank < merged, rank, merged + (rank - merged) * s * s)
        local = torch.where((rank < merged)[:, :, None], 0, torch.arange(s * s, device=rank.device))
        slot = (first_slot[:, :, None] + local).reshape(batch, height // s, width // s, s, s)
        slot_of_token = slot.permute(0, 1, 3, 2, 4).reshape(batch, self.num_tokens)

        merged_cells = ranked_cell[:, :merged]
        kept_cells = ranked_cell[:, merged:]
        kept_tokens = token_table.index_select(0, kept_cells.reshape(-1)).reshape(batch, -1)
        return MergePlan(
            grid=self.grid,
            cell=s,
            slot_of_token=slot_of_token,
            anchor_of_slot=torch.cat([anchor_of_cell.gather(1, merged_cells), kept_tokens], 1),
            source_of_slot=torch.cat([merged_cells, kept_tokens + self.num_cells], 1),
        )

    def overhead_macs(self, channels: int) -> int:
        """Sobel (18 per token and channel), cell means, and counting of ranks, twice."""
        energy = 18 * self.num_tokens * channels
        means = self.num_tokens * channels
        return energy + means + 2 * self.num_cells**2

    def _tokens_of_cell(self, device: torch.device) -> Tensor:
        """Row-major grid position of every token of every cell, [N/s^2, s^2] int64."""
        height, width = self.grid
        s = self.cell
        position = torch.arange(self.num_tokens, device=device)
        position = position.reshape(height // s, s, width // s, s).permute(0, 2, 1, 3)
        return position.reshape(self.num_cells, s * s)
