"""Cut two masks to the part of the image in which anything is."""

from __future__ import annotations

import numpy as np


def crop_to_objects(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both bool masks [H, W] cut to the box around all their pixels; empty ones: [0, 0].

    What lies outside of the box is background, as it is outside of the image: erosions and
    surfaces are the same without it.
    """
    rows = np.flatnonzero(first.any(axis=1) | second.any(axis=1))
    columns = np.flatnonzero(first.any(axis=0) | second.any(axis=0))
    if not rows.size:
        return first[:0, :0], second[:0, :0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return first[box], second[box]
