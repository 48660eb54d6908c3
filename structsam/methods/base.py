"""The contract of a merging method: fixed counts first, then a plan per token map.

Everything that decides a count is a Python int before the first tensor operation; everything that
decides which tokens is index data of fixed shape. A method knows nothing about SAM.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from structsam.errors import UserError
from structsam.merge_plan import MergePlan


@dataclass(frozen=True)
class MergeMethod(ABC):
    """One method for one token map size and rate.

    Args:
        grid: (H, W) of the token map.
        rate: share of the N = H*W tokens to remove, from 0 to `max_rate`.

    Raises:
        UserError: the rate is no number in that range, or the grid does not fit the method.
    """

    grid: tuple[int, int]
    rate: float

    name: ClassVar[str]
    max_rate: ClassVar[float]

    def __post_init__(self) -> None:
        check_rate(self.rate, self.name, self.max_rate)

    @property
    def num_tokens(self) -> int:
        """N = H*W."""
        return self.grid[0] * self.grid[1]

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """M, the number of tokens that are left after merging."""

    @abstractmethod
    def token_energy(self, feature_map: Tensor) -> Tensor | None:
        """Score the tokens of a whole map before it is cut into windows.

        Args:
            feature_map: [B, H', W', C], the unpadded map that the grid is a window of.

        Returns:
            [B, H', W'] float32, or None when the method scores inside `plan` only.
        """

    @abstractmethod
    def plan(self, tokens: Tensor, energy: Tensor | None = None) -> MergePlan:
        """Decide which tokens share a slot.

        Args:
            tokens: [B, N, C] in row-major order of the grid.
            energy: [B, N] from `token_energy`, 0 on padding; computed from `tokens` when absent.
        """

    @abstractmethod
    def overhead_macs(self, channels: int) -> int:
        """Multiply-adds of scoring, planning and merging one map of `channels` channels."""


def check_rate(rate: float, method: str, max_rate: float) -> None:
    """Refuse a rate outside [0, max_rate]; never clamp.

    Raises:
        UserError: the message names the limit.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate):
        raise UserError(f"rate must be a number from 0 to {max_rate}, not {rate!r}")
    if not 0 <= rate <= max_rate:
        raise UserError(
            f"rate {rate} is outside [0, {max_rate}], the range of method {method!r}. "
            f"Use --rate {max_rate} or less"
            if rate > 0
            else f"rate {rate} is negative. Use a rate from 0 to {max_rate}"
        )
