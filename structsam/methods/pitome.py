"""PiToMe: merge the tokens that resemble many others (Tran et al., NeurIPS 2024, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from structsam.methods.base import MergeMethod, require_cells
from structsam.methods.cost import MergeCost, matching_cost

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan

_CELL = 2
#: Above every energy, so that padding is the first to merge.
_PADDING_ENERGY = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class PiToMe(MergeMethod):
    """Protect the tokens of low energy, and merge the others pairwise.

    The energy of a token is `E_i = 1/N sum_j ELU_alpha(cos(i, j) - margin)`: high where many
    others are like it. The sum is over all j, the token itself included, and ELU is applied to
    cos - margin as in the authors' code (their text has cos itself above the margin).

    Args:
        margin: m above; with `schedule=linear` the margin of the first layer.
        schedule: the same margin in every layer, or `margin * (1 - layer/depth)`.
        alpha: slope of ELU below the margin.
        variant: `protected`: of the 2R tokens of highest energy, every second merges; `stride`:
            one destination per 2x2 cell, its token of highest energy, and no protection.
    """

    margin: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    alpha: float = 1.0
    variant: Literal["protected", "stride"] = "protected"

    name: ClassVar[str] = "pitome"
    source: ClassVar[str] = "arXiv 2405.16148, section 3"
    max_rate: ClassVar[float] = 0.5
    energy_name: ClassVar[str] = "likeness to all other tokens, high merges first"

    def __post_init__(self) -> None:
        if self.variant == "stride":
            require_cells(self.grid, _CELL)
        super().__post_init__()

    @property
    def rate_limit(self) -> float:
        """One of every pair, or all but one token of every cell."""
        return 0.75 if self.variant == "stride" else self.max_rate

    @property
    def margin_here(self) -> float:
        """The margin of this layer."""
        linear = self.schedule == "linear"
        return self.margin * (1 - self.layer / self.depth) if linear else self.margin

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """High energy merges first; ties go to the lower index."""
        import torch
        import torch.nn.functional as F

        from structsam.plans.cells import first_of_cells
        from structsam.plans.matching import cosine_similarity, merge_alternate, merge_best_edges
        from structsam.plans.ranking import invert_ranks, rank_descending

        similarity = cosine_similarity(tokens, tokens, padding, padding)  # [B, N, N]
        energy = F.elu(similarity - self.margin_here, self.alpha).mean(-1)  # [B, N]
        score = energy if padding is None else torch.where(padding, _PADDING_ENERGY, energy)
        if self.variant == "stride":
            destinations, sources = first_of_cells(-score, self.grid)
            plan = merge_best_edges(
                self.grid, tokens, sources, destinations, self.num_removed, similarity=similarity
            )
        else:
            order = invert_ranks(rank_descending(score))
            plan = merge_alternate(
                self.grid, tokens, order, self.num_removed, similarity=similarity
            )
        return replace(plan, energy=energy)

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """All tokens with all tokens, once for the energy and the matching, and the product."""
        stride = self.variant == "stride"
        destinations = self.num_tokens // _CELL**2 if stride else self.num_removed
        pooling = matching_cost(0, destinations, self.num_removed, channels, metric_channels)
        return MergeCost(matching=self.num_tokens**2 * metric_channels, pooling=pooling.pooling)
