"""CubistMerge: shorten all rows, then all columns, by merging neighbours (arXiv 2509.21764).

The result is a smaller regular grid. Merging follows its lines, so structure survives; slots take
the value of largest magnitude per channel.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from structsam.methods.base import MergeMethod
from structsam.methods.cost import MergeCost

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan


@dataclass(frozen=True)
class CubistMerge(MergeMethod):
    """Merge alike neighbours along rows and then along columns, equally many in every line.

    R is what whole lines allow: the pair of reductions whose R is nearest to the rate.

    Args:
        feature: per channel the value of largest magnitude, or the mean of the slot's tokens.
        positions: `structured`: slots stand on the smaller grid, with relative positions
            stretched to it; `original`: where their surviving token stood.
    """

    feature: Literal["max_magnitude", "mean"] = "max_magnitude"
    positions: Literal["structured", "original"] = "structured"

    name: ClassVar[str] = "cubistmerge"
    source: ClassVar[str] = "arXiv 2509.21764, section 3, adapted to SAM by us"
    max_rate: ClassVar[float] = 0.75
    metric: ClassVar[str] = "all"

    @property
    def max_removed(self) -> int:
        """Half of every line, twice."""
        height, width = self.grid
        return self.num_tokens - -(-height // 2) * -(-width // 2)

    @property
    def removed_per_line(self) -> tuple[int, int]:
        """How many tokens every column and every row loses: (rho_h, rho_w).

        About `t*(1 - sqrt(1 - rate))` of a line of t tokens.
        """
        wanted = self.rate * self.num_tokens
        if wanted > self.max_removed + 1e-9:
            raise self._no_such_count()
        exact = [side * (1 - math.sqrt(1 - self.rate)) for side in self.grid]
        sides = [range(side // 2 + 1) for side in self.grid]
        pairs = list(itertools.product(*sides))
        if self.align > 1:
            pairs = [p for p in pairs if self._left(p) % self.align == 0]
            pairs = [p for p in pairs if self.num_tokens - self._left(p) >= wanted - 1e-9]
            if not pairs:
                raise self._no_such_count()
        else:
            pairs = [p for p in pairs if all(abs(a - b) < 1 for a, b in zip(p, exact, strict=True))]

        def misfit(pair: tuple[int, ...]) -> tuple[float, float]:
            removed = self.num_tokens - self._left(pair)
            return abs(removed - wanted), sum(abs(a - b) for a, b in zip(pair, exact, strict=True))

        rho_h, rho_w = min(pairs, key=misfit)
        return rho_h, rho_w

    @property
    def num_removed(self) -> int:
        """R = H*W - (H - rho_h)*(W - rho_w)."""
        return self.num_tokens - self._left(self.removed_per_line)

    @property
    def num_removed_in_thesis(self) -> int:
        """CubistMerge is not in the thesis; whole lines."""
        return self.num_removed

    @property
    def slot_grid(self) -> tuple[int, int] | None:
        """The smaller grid, unless slots stand where their surviving token stood."""
        rho_h, rho_w = self.removed_per_line
        smaller = (self.grid[0] - rho_h, self.grid[1] - rho_w)
        return smaller if self.positions == "structured" else None

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Rows first, then the columns of what is left; ties: lower index, left neighbour."""
        import torch

        from structsam.plans.grid_features import GridFeatures
        from structsam.plans.line_merge import line_pass
        from structsam.plans.plan import MergePlan

        batch = tokens.shape[0]
        height, width = self.grid
        rho_h, rho_w = self.removed_per_line
        short = width - rho_w
        lines = tokens.reshape(batch * height, width, -1)
        flags = None if padding is None else padding.reshape(batch * height, width)
        rows = line_pass(lines, rho_w, flags)
        features = GridFeatures(self.grid, rows, rows, self.feature)  # rows only, so far
        shorter = features.pass_rows(tokens)  # [B, H, W', C]
        if flags is not None:
            flags = flags.gather(1, rows.kept).reshape(batch, height, short)
            flags = flags.transpose(1, 2).reshape(batch * short, height)
        columns = line_pass(shorter.transpose(1, 2).flatten(0, 1), rho_h, flags)
        features = GridFeatures(self.grid, rows, columns, self.feature)

        place_x = rows.place_of_token.reshape(batch, height * width)  # [B, N] in 0..W'-1
        y = torch.arange(height * width, device=tokens.device) // width
        of_column = columns.place_of_token.reshape(batch, short * height)
        place_y = of_column.gather(1, place_x * height + y)
        kept_y = columns.kept.reshape(batch, short, -1).transpose(1, 2)  # [B, H', W']
        kept_x = rows.kept.reshape(batch, height * short)
        kept_y = kept_y.flatten(1)
        column = torch.arange(kept_y.shape[1], device=tokens.device) % short
        anchor = kept_y * width + kept_x.gather(1, kept_y * short + column)
        return MergePlan(
            grid=self.grid,
            slot_of_token=place_y * short + place_x,
            anchor_of_slot=anchor,
            size_of_slot=features.sizes(tokens).long(),
            features=features,
            slot_grid=self.slot_grid,
        )

    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Products of neighbours, along rows and along the columns that are left."""
        height, width = self.grid
        short = width - self.removed_per_line[1]
        pairs = height * (width - 1) + short * (height - 1)
        return MergeCost(energy=pairs * metric_channels)

    def _left(self, removed: tuple[int, ...]) -> int:
        """M when every column and every row loses that many tokens."""
        return (self.grid[0] - removed[0]) * (self.grid[1] - removed[1])
