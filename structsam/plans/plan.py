"""MergePlan: which tokens share a slot, where the slot stands, and what its feature is.

A plan is index data of static shape, so it can be printed, tested, drawn, exported and compared
between backends. Letters: B maps, H W token grid, N = H*W tokens, M slots, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from structsam.plans.slot_features import SlotFeatures, gather_rows


@dataclass(frozen=True)
class MergePlan:
    """Assignment of N tokens to M slots.

    Args:
        grid: (H, W).
        slot_of_token: [B, N] int64 in 0..M-1, tokens in row-major order of the grid.
        anchor_of_slot: [B, M] int64 in 0..N-1, the grid position that stands for the slot; a
            member of it.
        size_of_slot: [B, M] int64, how many tokens share the slot.
        features: what `merge` computes.
        slot_grid: (H', W') when the slots form a smaller regular grid, in row-major order, whose
            relative positions are those of that grid; None when slots stand at their anchors.
        energy: [B, N] float32 by which the plan ranked its tokens, where a method scores them
            itself; to look at.
    """

    grid: tuple[int, int]
    slot_of_token: Tensor
    anchor_of_slot: Tensor
    size_of_slot: Tensor
    features: SlotFeatures
    slot_grid: tuple[int, int] | None = None
    energy: Tensor | None = None

    @property
    def num_slots(self) -> int:
        """M, a Python int."""
        return self.anchor_of_slot.shape[1]

    def merge(self, tokens: Tensor) -> Tensor:
        """Give every slot its feature: [B, N, C] -> [B, M, C]."""
        return self.features(tokens)

    def unmerge(self, merged: Tensor) -> Tensor:
        """Give every token its slot's row: [B, M, C] -> [B, N, C]."""
        return gather_rows(merged, self.slot_of_token)
