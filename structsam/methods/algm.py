"""ALGM: merge cells whose tokens are alike, then alike tokens anywhere (Norouzi et al., CVPR 2024).

The published method merges what is above a threshold, so its counts depend on the data (and on the
batch). Here the counts are fixed, and which cells and tokens they are follows its scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from structsam.methods.base import MergeMethod, require_cells
from structsam.methods.cost import MergeCost, matching_cost

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan

_CELL = 2
_PAIRS = 6  # of the four tokens in a cell


@dataclass(frozen=True)
class ALGM(MergeMethod):
    """Merge the cells of highest mean cosine; optionally then match the tokens that are left.

    Args:
        stages: `local`: cells only; `local+global`: three quarters of the tokens to remove by
            cells, the rest by ToMe's matching of the sequence that is left.
    """

    stages: Literal["local", "local+global"] = "local"

    name: ClassVar[str] = "algm"
    source: ClassVar[str] = "arXiv 2406.09936, section 3, at fixed counts"
    max_rate: ClassVar[float] = 0.75

    def __post_init__(self) -> None:
        require_cells(self.grid, _CELL)
        super().__post_init__()

    @property
    def rate_limit(self) -> float:
        """All but one token of every cell, and then half of what is left."""
        return self.max_rate if self.stages == "local" else 0.875

    @property
    def _finest_step(self) -> int:
        return 3 if self.stages == "local" else 1

    @property
    def num_removed_in_thesis(self) -> int:
        """ALGM is not in the thesis; whole cells."""
        return self.num_removed

    @property
    def num_merged_cells(self) -> int:
        """Cells of the first stage: three quarters of R, and more where pairs run out."""
        removed = self.num_removed
        if self.stages == "local":
            return removed // 3
        wanted = min(-(-(removed - removed // 4) // 3), removed // 3)
        return max(wanted, -(-(2 * removed - self.num_tokens) // 3))

    @property
    def num_matched(self) -> int:
        """Tokens that the second stage removes."""
        return self.num_removed - 3 * self.num_merged_cells

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Cells by mean cosine, then even and odd slots; ties go to the lower index."""
        import torch

        from structsam.plans.matching import best_match, plan_of_match
        from structsam.plans.plan import MergePlan
        from structsam.plans.ranking import invert_ranks, rank_descending
        from structsam.plans.slot_features import InTurn

        first = self._merge_cells(tokens, padding)
        if not self.num_matched:
            return first
        alike = first.merge(tokens)
        is_padding = None if padding is None else padding.gather(1, first.anchor_of_slot)
        batch, slots = first.anchor_of_slot.shape
        position = torch.arange(slots, device=tokens.device).expand(batch, -1)
        sources, destinations = position[:, ::2], position[:, 1::2]
        score, match = best_match(alike, sources, destinations, is_padding)
        by_score = invert_ranks(rank_descending(score))
        merged, kept = by_score[:, : self.num_matched], by_score[:, self.num_matched :]
        second = plan_of_match(
            self.grid,
            kept=sources.gather(1, kept),
            destinations=destinations,
            sources=sources.gather(1, merged),
            match=match.gather(1, merged),
            weights=first.size_of_slot,
        )
        return MergePlan(
            grid=self.grid,
            slot_of_token=second.slot_of_token.gather(1, first.slot_of_token),
            anchor_of_slot=first.anchor_of_slot.gather(1, second.anchor_of_slot),
            size_of_slot=second.size_of_slot,
            features=InTurn(first.features, second.features),
        )

    def _merge_cells(self, tokens: Tensor, padding: Tensor | None) -> MergePlan:
        """Merge the cells of highest mean cosine; a slot stands at its cell's last token."""
        import torch

        from structsam.plans.cells import cells_of, merge_first_cells, tokens_of_cells
        from structsam.plans.matching import BOTH_PADDING, unit_vectors
        from structsam.plans.ranking import rank_descending

        in_cell = cells_of(unit_vectors(tokens.float()), self.grid, _CELL)  # [B, N/4, 4, C]
        # the sum over all pairs is half of |sum|^2 - sum |.|^2; no product of FP32 matrices
        total, each = in_cell.sum(2), (in_cell * in_cell).sum((2, 3))
        score = ((total * total).sum(-1) - each) / (2 * _PAIRS)
        if padding is not None:
            score = torch.where(cells_of(padding, self.grid, _CELL).all(-1), BOTH_PADDING, score)
        rank = rank_descending(score)
        last = tokens_of_cells(self.grid, _CELL, tokens)[:, -1]
        return merge_first_cells(self.grid, _CELL, rank, self.num_merged_cells, last)

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Pairs within cells, and the matching and the product of the second stage."""
        cells = self.num_tokens // _CELL**2
        local = _PAIRS * cells * metric_channels
        if self.stages == "local":
            return MergeCost(energy=local)
        left = self.num_tokens - 3 * self.num_merged_cells
        half = left // 2
        return matching_cost(left - half, half, self.num_matched, channels, metric_channels, local)
