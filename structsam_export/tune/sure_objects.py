"""The objects that a model is surest of in a photo, found without annotation.

A grid of points is asked for; of masks that overlap, the one of higher predicted IoU stays. All of
it happens on low-resolution masks, so that it costs one decoder call and no enlarged mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Share of the photo that an object may take, and of its mask that surer objects may cover.
SMALLEST, LARGEST, OVERLAP = 0.002, 0.5, 0.3


def grid_points(side: int) -> np.ndarray:
    """Return (x, y) of side x side points as shares of the photo, float64 [side * side, 2]."""
    steps = (np.arange(side) + 0.5) / side
    return np.array([(x, y) for y in steps for x in steps])


def sure_objects(
    scores: np.ndarray, low_res: np.ndarray, inside: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield (prompt, output) of masks, the surest first, without those that overlap one before.

    Args:
        scores: predicted IoU, float [P, O].
        low_res: logits, float [P, O, h, w].
        inside: rows and columns of h, w that the photo takes; the rest is padding.
    """
    rows, columns = inside
    taken = np.zeros((rows, columns), bool)
    best = scores.argmax(axis=1)
    for prompt in np.argsort(-scores.max(axis=1), kind="stable"):
        mask = low_res[prompt, best[prompt], :rows, :columns] > 0
        if not SMALLEST <= mask.mean() <= LARGEST or taken[mask].mean() > OVERLAP:
            continue
        taken |= mask
        yield int(prompt), int(best[prompt])


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) round a mask bool [h, w], not empty, as shares of its sides."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )
