"""ToMe: bipartite soft matching of even and odd tokens (Bolya et al., ICLR 2023, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from structsam.methods.fixed_destinations import FixedDestinations


@dataclass(frozen=True)
class ToMe(FixedDestinations):
    """Merge the even tokens that are most similar to an odd one.

    As in SAM's adaptation, tokens are compared by the mean over their heads before attention,
    and slots are plain means (every token counts once when a layer begins).
    """

    name: ClassVar[str] = "tome"
    source: ClassVar[str] = "arXiv 2210.09461, section 3"
    max_rate: ClassVar[float] = 0.5

    def destination_positions(self) -> np.ndarray:
        """Return the odd positions of the row-major sequence."""
        return np.arange(1, self.num_tokens, 2)
