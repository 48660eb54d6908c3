"""The contract of a merging method: fixed counts first, then a plan per token map.

Everything that decides a count is a Python int before the first tensor operation; everything that
decides which tokens is index data of fixed shape. A method knows nothing about SAM.

Counts and limits are asked for where torch is not loaded: a method's file imports torch, and what
it plans with, inside the functions that make a plan.

A method's options are the keyword fields of its dataclass: `Literal[...]` for a choice, `int` or
`float` for a number. The command line, the manifest and the documentation read them from there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam.errors import UserError
from structsam.methods.cost import MergeCost
from structsam.methods.options import check_options

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.plans.plan import MergePlan


@dataclass(frozen=True)
class MergeMethod(ABC):
    """One method for one token map size and rate.

    Args:
        grid: (H, W) of the token map.
        rate: share of the N = H*W tokens to remove, from 0 to the method's limit.
        align: make the number of kept tokens a multiple of this, by removing a few more.
        layer: index of the layer that merges, for methods whose rule depends on it.
        depth: number of layers.

    Raises:
        UserError: the rate is no number in that range, an option has no such value, or the grid
            does not fit the method.
    """

    grid: tuple[int, int]
    rate: float
    align: int = 1
    layer: int = 0
    depth: int = 1

    name: ClassVar[str]
    #: Where the rule comes from: publication, section.
    source: ClassVar[str]
    #: Limit of the rate with the default options.
    max_rate: ClassVar[float]
    #: Which features are scored and compared: the mean over the attention heads, or all channels.
    metric: ClassVar[str] = "head_mean"
    #: What the tokens' energy is, where the method has one (`token_energy`, `MergePlan.energy`).
    energy_name: ClassVar[str] = "gradient of the features"
    #: Whether `plan` takes a prompt box.
    takes_box: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)
        check_rate(self.rate, self.name, self.rate_limit)
        if type(self.align) is not int or self.align < 1:
            raise UserError(f"align must be a whole number from 1, not {self.align!r}")
        _ = self.num_slots  # refuses a count that cannot be had

    @property
    def num_tokens(self) -> int:
        """N = H*W."""
        return self.grid[0] * self.grid[1]

    @property
    def rate_limit(self) -> float:
        """The largest rate with these options on any grid that suits the method."""
        return self.max_rate

    @property
    def max_removed(self) -> int:
        """The largest number of tokens that can be removed from this map."""
        return math.floor(self.rate_limit * self.num_tokens + 1e-9)

    @property
    def step(self) -> int:
        """The common step of R; a method that removes whole groups needs a multiple of it.

        StructSAM removes three tokens per 2x2 cell, so three is everybody's step: at one rate all
        methods keep equally many tokens wherever their limits allow.
        """
        return 3

    @property
    def num_removed(self) -> int:
        """R: the smallest count of at least `rate * N` that fits the step and `align`.

        Close to the method's limit the step gives way, never the rate. (CubistMerge removes whole
        lines instead, and takes the nearest count that these allow.)
        """
        need = math.ceil(self.rate * self.num_tokens - 1e-9)
        for step in (self.step, self._finest_step):
            first = -(-need // step) * step
            for removed in range(first, self.max_removed + 1, step):
                if (self.num_tokens - removed) % self.align == 0:
                    return removed
        raise self._no_such_count()

    @property
    def _finest_step(self) -> int:
        """What R must be a multiple of in any case."""
        return 1

    @property
    def num_slots(self) -> int:
        """M = N - R, the number of tokens that are left after merging."""
        return self.num_tokens - self.num_removed

    @property
    def slot_grid(self) -> tuple[int, int] | None:
        """(H', W') where slots form a smaller regular grid and stand on it; else None."""
        return None

    @property
    def num_removed_in_thesis(self) -> int:
        """R as the thesis code counts it, `int(rate * N)`; for its published multiply-adds."""
        return math.floor(self.rate * self.num_tokens + 1e-9)

    def token_energy(self, feature_map: Tensor) -> Tensor | None:
        """Score the tokens of a whole map before it is cut into windows.

        Args:
            feature_map: [B, H', W', C], the unpadded map that the grid is a window of.

        Returns:
            [B, H', W'] float32, or None when the method scores inside `plan` only.
        """
        return None

    @abstractmethod
    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Decide which tokens share a slot.

        Args:
            tokens: [B, N, C] in row-major order of the grid: the features to score and compare.
            energy: [B, N] from `token_energy`, 0 on padding; computed from `tokens` when absent.
            padding: [B, N] bool, true where the token is padding; None when there is none. Real
                tokens never share a slot with padding where both their rows and columns are even
                in number, as in all windows of SAM.
            box: [B, 4] x0, y0, x1, y1 in tokens (token i covers i..i+1): what lies outside
                merges first. Only for methods with `takes_box`.
        """

    def padding_slots(self, real: tuple[int, int]) -> int | None:
        """How many slots at the start of a map hold padding, if that is known beforehand.

        All padding is in these slots, and nothing else.

        Args:
            real: rows and columns of the map that are no padding.

        Returns:
            0..M for a method that puts padding first when `plan` is told of it; None for any other.
        """
        return None

    def padding_slots_of_maps(self, image: tuple[int, int]) -> list[int] | None:
        """Count the slots of padding at the start of every map that a larger grid is cut into.

        Args:
            image: (H', W') of the whole token grid, padded at the right and bottom.

        Returns:
            One number a map, row-major; None when the method does not say, or there are none.

        >>> from structsam.methods import StructSAM
        >>> StructSAM((14, 14), 0.5).padding_slots_of_maps((20, 28))  # 8 rows are padding
        [0, 0, 28, 28]
        """
        rows, columns = (
            [min(side, length - start) for start in range(0, length, side)]
            for length, side in zip(image, self.grid, strict=True)
        )
        counts = [self.padding_slots((row, column)) for row in rows for column in columns]
        known = [count for count in counts if count is not None]
        return known if len(known) == len(counts) and any(known) else None

    @abstractmethod
    def cost(self, channels: int, metric_channels: int) -> MergeCost:
        """Count scoring, matching and pooling of one map.

        Args:
            channels: C of the tokens that are merged.
            metric_channels: channels of the features that `plan` gets.
        """

    def _no_such_count(self) -> UserError:
        kept = f" and keep a multiple of {self.align} tokens" if self.align > 1 else ""
        return UserError(
            f"method {self.name!r} cannot remove {self.rate} of a {self.grid[0]}x{self.grid[1]} "
            f"map{kept}: at most {self.max_removed} of {self.num_tokens} tokens can go. "
            f"Use a lower rate{', or no align' if kept else ''}"
        )


class RateAboveLimit(UserError):
    """A rate that is above the method's `limit`; the message names the methods that allow it."""

    def __init__(self, rate: float, method: str, limit: float) -> None:
        others = ", ".join(self.alternatives(rate))
        super().__init__(
            f"rate {rate} is outside [0, {limit:g}], the range of method {method!r}. "
            f"Use `rate={limit:g}` or less"
            + (f", or a method that allows it: {others}" if others else "")
        )
        self.limit = limit

    @staticmethod
    def alternatives(rate: float) -> list[str]:
        """Name methods that can remove this share; the registry, which knows them, fills it in."""
        return []


def check_rate(rate: float, method: str, limit: float) -> None:
    """Refuse a rate outside [0, limit]; never clamp.

    Raises:
        RateAboveLimit: the message names the limit, and the methods that allow a higher rate.
        UserError: no number, or a negative one.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate):
        raise UserError(f"rate must be a number from 0 to {limit:g}, not {rate!r}")
    if rate < 0:
        raise UserError(f"rate {rate} is negative. Use a rate from 0 to {limit:g}")
    if rate > limit:
        raise RateAboveLimit(rate, method, limit)


def require_cells(grid: tuple[int, int], s: int) -> None:
    """Refuse a grid that whole cells do not fill.

    Raises:
        UserError: saying which sides fit.
    """
    height, width = grid
    if height < 1 or width < 1 or height % s or width % s:
        raise UserError(
            f"a token grid of {height}x{width} cannot be cut into cells of {s}x{s}. "
            + (
                "Use a grid with even sides"
                if s == 2
                else "Use cells of 2x2, or merge only layers whose grid they divide"
            )
        )
