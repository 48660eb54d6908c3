"""ToMeSD: one destination per cell, or a random quarter (Bolya & Hoffman, CVPRW 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from structsam.methods.fixed_destinations import FixedDestinations


@dataclass(frozen=True)
class ToMeSD(FixedDestinations):
    """Merge the tokens that are most similar to one of N/4 destinations all over the map.

    Args:
        destinations: `rand2x2` a random token of every 2x2 cell, `stride` its top left one, or
            `rand25` a random quarter of all tokens.
        feature: a slot's feature is the mean of its tokens, or its destination's own (`replace`).
        seed: of the random choices, which are constants of the graph.
    """

    destinations: Literal["rand2x2", "stride", "rand25"] = "rand2x2"
    feature: Literal["mean", "replace"] = "mean"
    seed: int = 0

    name: ClassVar[str] = "tomesd"
    source: ClassVar[str] = "arXiv 2303.17604, section 3"
    max_rate: ClassVar[float] = 0.75

    @property
    def replaces(self) -> bool:
        """Whether sources are dropped."""
        return self.feature == "replace"

    def destination_positions(self) -> np.ndarray:
        """Return one position per whole 2x2 cell (a ragged border has none), or a quarter."""
        height, width = self.grid
        random = np.random.RandomState(self.seed)
        if self.destinations == "rand25":
            return np.sort(random.permutation(self.num_tokens)[: self.num_tokens // 4])
        y, x = np.mgrid[0 : height // 2, 0 : width // 2] * 2
        if self.destinations == "rand2x2":
            y, x = y + random.randint(0, 2, y.shape), x + random.randint(0, 2, x.shape)
        return np.sort((y * width + x).ravel())
