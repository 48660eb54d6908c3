"""StructSAM: merge the flattest cells, keep the others whole (arXiv 2603.07307, Algorithm 1).

The map is cut into s x s cells. A cell's energy is the largest gradient energy in it; the cells
of least energy are merged, each into the mean of its tokens, and stand where their flattest token
stood. No similarity, no sort, no scatter: ranks are counted, slots follow from ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from structsam.methods.base import MergeMethod, require_cells
from structsam.methods.cost import MergeCost, energy_cost

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan


@dataclass(frozen=True)
class StructSAM(MergeMethod):
    """Merge the cells of least gradient energy, without comparing tokens.

    Args:
        operator: gradient by Sobel or by central differences (paper, Table 4).
        flatness: a cell's energy is the largest, or the mean, of its tokens' energies.
        cells: merge the flattest cells, or cells at random.
        destination: a merged cell stands where its flattest, its steepest or a random token is.
        variant: `cell`, or `no_cell`: the tokens of least energy, every fourth a destination.
        cell_size: side s of a cell; it must divide the grid.
        channels: energy of the mean over the heads, or of all channels.
        seed: of the random choices, which are constants of the graph.
    """

    operator: Literal["sobel", "central"] = "sobel"
    flatness: Literal["max", "mean"] = "max"
    cells: Literal["flat", "random"] = "flat"
    destination: Literal["min", "max", "random"] = "min"
    variant: Literal["cell", "no_cell"] = "cell"
    cell_size: Literal[2, 4] = 2
    channels: Literal["head_mean", "all"] = "head_mean"
    seed: int = 0

    name: ClassVar[str] = "structsam"
    source: ClassVar[str] = "arXiv 2603.07307, section 3.3, Algorithm 1"
    max_rate: ClassVar[float] = 0.75
    takes_box: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cell_size in (2, 4):
            require_cells(self.grid, self.cell_size)
        super().__post_init__()

    @property
    def metric(self) -> str:  # type: ignore[override]
        """What the energy is computed of."""
        return self.channels

    @property
    def rate_limit(self) -> float:
        """All but one token of every cell; of every four tokens without cells."""
        return self.step / (self.step + 1)

    @property
    def step(self) -> int:
        """A merged cell removes s^2 - 1 tokens; R is `ceil(rate*N / step)` cells (Algorithm 1)."""
        return 3 if self.variant == "no_cell" else self.cell_size**2 - 1

    @property
    def _finest_step(self) -> int:
        return self.step

    @property
    def num_removed_in_thesis(self) -> int:
        """The paper's own count."""
        return self.num_removed

    @property
    def num_cells(self) -> int:
        """Cells in the map, N / s^2."""
        return self.num_tokens // self.cell_size**2

    @property
    def num_merged_cells(self) -> int:
        """`ceil(rate * N / (s^2 - 1))` (Algorithm 1)."""
        return self.num_removed // self.step

    def token_energy(self, feature_map: Tensor) -> Tensor:
        """Gradient energy [B, H', W'] of the whole map, borders replicated."""
        from structsam.plans.gradient_energy import OPERATORS

        return OPERATORS[self.operator](feature_map)

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Merge the cells of least energy, those outside the box first; ties: lower index.

        Cells of padding come before all others; no cell of SAM's windows mixes it with real tokens.
        """
        batch = tokens.shape[0]
        height, width = self.grid
        if energy is None:
            energy = self.token_energy(tokens.reshape(batch, height, width, -1)).flatten(1)
        if self.variant == "no_cell":
            return self._plan_without_cells(tokens, energy, padding, box)
        return self._plan_cells(energy, padding, box)

    def _plan_cells(self, energy: Tensor, padding: Tensor | None, box: Tensor | None) -> MergePlan:
        import torch

        from structsam.plans.cells import cells_of, merge_first_cells, tokens_of_cells
        from structsam.plans.ranking import rank_ascending

        s = self.cell_size
        in_cell = cells_of(energy, self.grid, s)  # [B, N/s^2, s^2]
        score = self._cell_energy(in_cell)  # [B, N/s^2]
        inside = None if box is None else _inside(box, self.grid, s)
        if padding is not None:
            in_padding = cells_of(padding, self.grid, s).all(-1)
            score = torch.where(in_padding, -1.0, score)
            inside = None if inside is None else inside & ~in_padding  # a box may reach over it
        rank = rank_ascending(score, inside)
        is_destination = self._destination_rank(in_cell) == 0  # [B, N/s^2, s^2]
        position = tokens_of_cells(self.grid, s, energy)
        anchor_of_cell = (is_destination * position).sum(-1)  # [B, N/s^2]
        return merge_first_cells(self.grid, s, rank, self.num_merged_cells, anchor_of_cell)

    def padding_slots(self, real: tuple[int, int]) -> int | None:
        """Cells of padding are the first in rank order, and their slots the first of the map."""
        s = self.cell_size
        if self.variant == "no_cell" or real[0] % s or real[1] % s:
            return None  # cells that hold both may stay whole
        cells = self.num_cells - (real[0] // s) * (real[1] // s)
        kept = max(0, cells - self.num_merged_cells)
        return cells - kept + kept * s**2

    def _cell_energy(self, in_cell: Tensor) -> Tensor:
        """Reduce [B, N/s^2, s^2] to what the cells are ranked by, [B, N/s^2]; low merges first."""
        if self.cells == "random":
            order = _tensor(self._random_cells, in_cell)
            return order.expand(in_cell.shape[0], -1)
        return in_cell.amax(-1) if self.flatness == "max" else in_cell.mean(-1)

    def _destination_rank(self, in_cell: Tensor) -> Tensor:
        """Rank the tokens of every cell [B, N/s^2, s^2]; rank 0 is the destination."""
        from structsam.plans.ranking import rank_ascending

        if self.destination == "random":
            order = _tensor(self._random_tokens, in_cell)
            return order.expand(in_cell.shape[0], -1, -1)
        return rank_ascending(in_cell if self.destination == "min" else -in_cell)

    def _plan_without_cells(
        self, tokens: Tensor, energy: Tensor, padding: Tensor | None, box: Tensor | None
    ) -> MergePlan:
        """Of the 4/3 R tokens of least energy every fourth is a destination (methods.md 7.4)."""
        import torch

        from structsam.plans.matching import best_match, plan_of_match
        from structsam.plans.ranking import invert_ranks, rank_ascending

        inside = None if box is None else _inside(box, self.grid, 1)
        if padding is not None:
            energy = torch.where(padding, -1.0, energy)  # before every real token
        order = invert_ranks(rank_ascending(energy, inside))  # [B, N]
        mergeable = 4 * self.num_removed // 3
        place = np.arange(mergeable, dtype=np.int64)
        sources = order.index_select(1, _tensor(place[place % 4 != 0], order))
        destinations = order.index_select(1, _tensor(place[place % 4 == 0], order))
        _, match = best_match(tokens, sources, destinations, padding)
        return plan_of_match(self.grid, order[:, mergeable:], destinations, sources, match)

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Energy, and the cell means (or matching and pooling without cells)."""
        energy = energy_cost(self.operator, self.num_tokens, metric_channels)
        if self.variant == "cell":
            return MergeCost(energy=energy)
        pairs = self.num_removed * (self.num_removed // 3)
        return MergeCost(energy, pairs * metric_channels, pairs * channels)

    @cached_property
    def _random_cells(self) -> np.ndarray:
        """A fixed random order of the cells, float32 [N/s^2] in 0..N/s^2-1."""
        order = np.random.RandomState(self.seed).permutation(self.num_cells)
        return order.astype(np.float32)

    @cached_property
    def _random_tokens(self) -> np.ndarray:
        """A fixed random order of the tokens in every cell, int64 [N/s^2, s^2]."""
        random = np.random.RandomState(self.seed + 1)
        orders = [random.permutation(self.cell_size**2) for _ in range(self.num_cells)]
        return np.stack(orders).astype(np.int64)


def _inside(box: Tensor, grid: tuple[int, int], s: int) -> Tensor:
    """Whether the centre of every s x s cell lies in the box [B, 4]: [B, N/s^2] bool."""
    import torch

    height, width = grid
    y = s * torch.arange(height // s, device=box.device) + s / 2
    x = s * torch.arange(width // s, device=box.device) + s / 2
    in_y = (y >= box[:, 1:2]) & (y <= box[:, 3:4])  # [B, H/s]
    in_x = (x >= box[:, 0:1]) & (x <= box[:, 2:3])
    return (in_y.unsqueeze(2) & in_x.unsqueeze(1)).flatten(1)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    import torch

    return torch.as_tensor(values, device=like.device)
