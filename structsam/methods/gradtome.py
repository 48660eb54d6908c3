"""GradToMe: the flattest token of every cell is a destination (Xie, Stuttgart 2025, section 4.4).

The predecessor of StructSAM: gradients choose destinations, similarity over the whole map chooses
who joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from structsam.methods.base import MergeMethod, require_cells
from structsam.methods.cost import MergeCost, energy_cost, matching_cost

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan

_CELL = 2


@dataclass(frozen=True)
class GradToMe(MergeMethod):
    """Merge the tokens that are most similar to the flattest token of some cell.

    Args:
        operator: gradient by Sobel, correctly signed, or by central differences.
        variant: `grid`: one destination per 2x2 cell; `sorted`: of the 2R flattest tokens of the
            map, every second merges into the most similar of the others.
    """

    operator: Literal["sobel", "central"] = "sobel"
    variant: Literal["grid", "sorted"] = "grid"

    name: ClassVar[str] = "gradtome"
    source: ClassVar[str] = "S. Xie, thesis, Stuttgart 2025, section 4.4"
    max_rate: ClassVar[float] = 0.75

    def __post_init__(self) -> None:
        require_cells(self.grid, _CELL)
        super().__post_init__()

    @property
    def rate_limit(self) -> float:
        """All but one token of every cell, or one of every pair."""
        return 0.5 if self.variant == "sorted" else self.max_rate

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
        """Least energy marks destinations; ties go to the lower index."""
        import torch

        from structsam.plans.cells import first_of_cells
        from structsam.plans.matching import merge_alternate, merge_best_edges
        from structsam.plans.ranking import invert_ranks, rank_ascending

        batch = tokens.shape[0]
        if energy is None:
            energy = self.token_energy(tokens.reshape(batch, *self.grid, -1)).flatten(1)
        if self.variant == "sorted":
            if padding is not None:
                energy = torch.where(padding, -1.0, energy)  # padding first, see merge_alternate
            order = invert_ranks(rank_ascending(energy))
            return merge_alternate(self.grid, tokens, order, self.num_removed, padding)
        destinations, sources = first_of_cells(energy, self.grid)
        return merge_best_edges(self.grid, tokens, sources, destinations, self.num_removed, padding)

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Energy, every source with every destination, and the one-hot product."""
        energy = energy_cost(self.operator, self.num_tokens, metric_channels)
        if self.variant == "sorted":
            sources = destinations = self.num_removed
        else:
            destinations = self.num_tokens // _CELL**2
            sources = self.num_tokens - destinations
        return matching_cost(
            sources, destinations, self.num_removed, channels, metric_channels, energy
        )
