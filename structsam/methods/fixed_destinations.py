"""What methods share whose destinations are a constant table: a matching of all the others."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam.methods.base import MergeMethod
from structsam.methods.cost import MergeCost, matching_cost

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from structsam.plans.plan import MergePlan


@dataclass(frozen=True)
class FixedDestinations(MergeMethod):
    """Merge the R tokens that are most similar to one of some fixed destinations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self._destinations):
            height, width = self.grid
            raise UserError(
                f"method {self.name!r} finds no destination in a token grid of {height}x{width}. "
                "Use a larger grid"
            )

    @abstractmethod
    def destination_positions(self) -> np.ndarray:
        """Return the row-major positions of the destinations, int64 [D], ascending."""

    @property
    def replaces(self) -> bool:
        """Whether a destination keeps its own feature; else the slot's feature is the mean."""
        return False

    @property
    def max_removed(self) -> int:
        """Everything but the destinations."""
        return self.num_tokens - len(self._destinations)

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Join sources to their most similar destination; ties go to the lower index."""
        from structsam.plans.constants import constant
        from structsam.plans.matching import merge_best_edges

        batch = tokens.shape[0]
        sources, destinations = (
            positions.expand(batch, -1)
            for positions in constant(FixedDestinations._sides, self, like=tokens)
        )
        return merge_best_edges(
            self.grid, tokens, sources, destinations, self.num_removed, padding, self.replaces
        )

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Every source with every destination, and the one-hot product unless replaced."""
        destinations = len(self._destinations)
        sources = self.num_tokens - destinations
        pooled = 0 if self.replaces else self.num_removed
        return matching_cost(sources, destinations, pooled, channels, metric_channels)

    def _sides(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the positions of the sources [S] and of the destinations [D]."""
        import torch

        others = np.setdiff1d(np.arange(self.num_tokens), self._destinations)
        sources, destinations = (
            torch.as_tensor(positions, dtype=torch.int64, device=device)
            for positions in (others, self._destinations)
        )
        return sources, destinations

    @cached_property
    def _destinations(self) -> np.ndarray:
        return self.destination_positions()
