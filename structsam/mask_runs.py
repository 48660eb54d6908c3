"""Masks as run lengths down the columns, off and on in turn, off first: COCO's order."""

from __future__ import annotations

import numpy as np


def runs_of(part: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Return the runs int64 of a mask in a photo of `size` (H, W).

    Only the window is looked at: most masks are small beside their photo.

    Args:
        part: bool [h, w], the mask inside a window; it is off everywhere else.
        top: row of the window's first row in the photo.
        left: the same for columns.

    >>> runs_of(np.array([[True], [True]]), 1, 1, (3, 2)).tolist()  # down the second column
    [4, 2]
    """
    high, wide = part.shape
    framed = np.zeros((wide, high + 2), bool)
    framed[:, 1:-1] = part.T
    column, row = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), high + 1)
    places = (left + column) * size[0] + top + row
    starts, ends = places[::2], places[1::2]
    # a run goes on from the foot of a column at the top of the next one
    goes_on = np.isin(starts, ends)
    edges = np.stack([starts[~goes_on], ends[~np.isin(ends, starts)]], 1).ravel()
    total = size[0] * size[1]
    if not len(edges) or edges[-1] < total:
        edges = np.append(edges, total)
    return np.diff(edges, prepend=0)


def mask_of(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the bool mask [H, W] of its runs.

    >>> mask_of(np.array([4, 2]), (3, 2)).astype(int).tolist()
    [[0, 0], [0, 1], [0, 1]]
    """
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0])
    return np.ascontiguousarray(columns.T)
