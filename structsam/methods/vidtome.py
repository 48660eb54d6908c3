"""VidToMe on one image: sub-grids or rows as "frames", destinations unchanged (our adaptation).

The published method merges tokens of several video frames into one of them, and does nothing for a
single image. Here the frames are the four 2x2 phases of the grid, or the rows modulo four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from structsam.methods.fixed_destinations import FixedDestinations

_FRAMES = 4  # one of them holds the destinations


@dataclass(frozen=True)
class VidToMe(FixedDestinations):
    """Merge tokens into one of four "frames" of the image, which keeps its own features.

    Args:
        frames: `phase`: the four sub-grids (y mod 2, x mod 2); `rows`: the rows y mod 4.
        feature: the destination's own feature stands for the slot (`replace`), or the mean.
        seed: of the choice of the frame, which is a constant of the graph.
    """

    frames: Literal["phase", "rows"] = "phase"
    feature: Literal["replace", "mean"] = "replace"
    seed: int = 0

    name: ClassVar[str] = "vidtome"
    source: ClassVar[str] = "arXiv 2312.10656, section 4, adapted to one image by us"
    max_rate: ClassVar[float] = 0.75

    @property
    def replaces(self) -> bool:
        """Whether sources are dropped."""
        return self.feature == "replace"

    def destination_positions(self) -> np.ndarray:
        """Return the positions of the chosen frame; 14 rows do not make four equal frames."""
        height, width = self.grid
        chosen = int(np.random.RandomState(self.seed).randint(_FRAMES))
        y, x = np.mgrid[0:height, 0:width]
        frame = 2 * (y % 2) + x % 2 if self.frames == "phase" else y % _FRAMES
        return np.flatnonzero(frame == chosen)
