"""Slot features where lines were shortened: the rows of a grid, and then its columns.

Letters: B maps, H W token grid, N = H*W tokens, H' W' the smaller grid of slots, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from structsam.plans.line_merge import LinePass

_Merge = Callable[[LinePass, Tensor], Tensor]


@dataclass(frozen=True)
class GridFeatures:
    """Slot features of two passes, rows before columns: [B, N, C] -> [B, H'*W', C]."""

    grid: tuple[int, int]
    rows: LinePass
    columns: LinePass
    feature: str

    def __call__(self, tokens: Tensor) -> Tensor:
        """Give every slot its tokens' mean, or per channel their largest value: [B, H'*W', C]."""
        if self.feature == "max_magnitude":
            return self._pass_columns(self.pass_rows(tokens), LinePass.largest_magnitude)
        sums = self._pass_columns(self._sum_rows(tokens.float()), LinePass.total)
        return (sums / self.sizes(tokens).unsqueeze(-1)).to(tokens.dtype)

    def pass_rows(self, tokens: Tensor) -> Tensor:
        """Merge along the rows only: [B, N, C] -> [B, H, W', C]."""
        if self.feature == "max_magnitude":
            return self._rows(tokens, LinePass.largest_magnitude)
        sums, sizes = self._sum_rows(tokens.float()), self._sum_rows(_ones(tokens))
        return (sums / sizes).to(tokens.dtype)

    def sizes(self, tokens: Tensor) -> Tensor:
        """How many tokens share every slot, float32 [B, H'*W']."""
        ones = self._sum_rows(_ones(tokens))
        return self._pass_columns(ones, LinePass.total).squeeze(-1)

    def _sum_rows(self, tokens: Tensor) -> Tensor:
        return self._rows(tokens, LinePass.total)

    def _rows(self, tokens: Tensor, merge: _Merge) -> Tensor:
        batch, (height, width) = tokens.shape[0], self.grid
        lines = tokens.reshape(batch * height, width, tokens.shape[-1])
        return merge(self.rows, lines).reshape(batch, height, -1, tokens.shape[-1])

    def _pass_columns(self, tokens: Tensor, merge: _Merge) -> Tensor:
        batch, height, short, channels = tokens.shape
        lines = tokens.transpose(1, 2).reshape(batch * short, height, channels)
        merged = merge(self.columns, lines).reshape(batch, short, -1, channels)
        return merged.transpose(1, 2).reshape(batch, -1, channels)


def _ones(tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens[:, :, :1], dtype=torch.float32)
