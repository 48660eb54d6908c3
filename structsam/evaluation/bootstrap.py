"""Percentile bootstrap over images: how far a mean over masks could move with other images.

Masks of one image are not independent of each other, so whole images are drawn (cluster
bootstrap: Davison and Hinkley 1997, section 3.8; percentile interval: Efron and Tibshirani 1993,
section 13.3). `scipy.stats.bootstrap` gives the same intervals (a test compares them), but draws
and gathers anew for every metric; here one draw serves all metrics of a run as a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
#: Below this a verdict would be luck: five images move the same way by chance once in sixteen
#: sets (2 / 2^5 > 1 - LEVEL), and then no resample reaches the other side of 0.
FEWEST_FOR_VERDICT = 6
#: Numbers drawn at a time; bounds memory to some tens of MB for any number of images.
_CHUNK = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over masks with its interval.

    Args:
        value: sum over masks / masks; None where there is no mask.
        low: lower end of the interval; None where fewer than two images have masks.
        high: upper end.
        images: with at least one mask.
        masks: that were counted.
    """

    value: float | None
    low: float | None
    high: float | None
    images: int
    masks: int

    @property
    def verdict(self) -> str:
        """Say of a difference `no difference`, `higher`, `lower`, or `not tested` (few images)."""
        if self.low is None or self.high is None or self.images < FEWEST_FOR_VERDICT:
            return "not tested"
        if self.low <= 0 <= self.high:
            return "no difference"
        return "higher" if self.low > 0 else "lower"

    @property
    def note(self) -> str:
        """Say why there is no interval; else empty."""
        if self.low is not None:
            return ""
        return "no mask" if self.images == 0 else "no interval: one image only"


def per_image(values: np.ndarray, image: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Add up masks by image; NaN is left out.

    Args:
        values: [M, K] of every mask and metric.
        image: int [M], the image of each mask, in 0..images-1.
        images: how many there are, I.

    Returns:
        Sums and counts, both float64 [I, K].
    """
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, images, values.shape[1]))
    np.add.at(sums, image, np.where(known, values, 0.0))
    np.add.at(counts, image, known.astype(np.float64))
    return sums, counts


def interval(
    sums: np.ndarray,
    counts: np.ndarray,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the mean over masks, sum(sums) / sum(counts), with its interval.

    Args:
        sums: [I], sum of the metric over the masks of each image.
        counts: [I], masks of each image; an image may have none.
        level: share of resamples inside the interval, in 0..1.
        resamples: how often I images are drawn with replacement.
        seed: same seed, same interval.
    """
    columns = np.asarray(sums)[:, None], np.asarray(counts)[:, None]
    return intervals(*columns, level=level, resamples=resamples, seed=seed)[0]


def intervals(
    sums: np.ndarray,
    counts: np.ndarray,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Return `interval` of every column of `sums` and `counts` [I, K], from one draw."""
    if np.shape(sums) != np.shape(counts) or not 0 < level < 1:
        raise ValueError(f"shapes {np.shape(sums)} and {np.shape(counts)}, level {level}")
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    metrics = sums.shape[1]
    drawn = _resampled(np.concatenate([sums, counts], axis=1), resamples, seed)
    values = _ratio(drawn[:, :metrics], drawn[:, metrics:])
    means = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    images, masks = (counts > 0).sum(axis=0), counts.sum(axis=0)
    return [
        _estimate(float(means[k]), values[:, k], level, int(images[k]), int(masks[k]))
        for k in range(metrics)
    ]


def _resampled(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Column sums [R, C] of `table` [I, C] with its rows drawn with replacement, R times."""
    rows = len(table)
    if rows < 2:
        return np.repeat(table.sum(axis=0)[None], resamples, axis=0)
    rng = np.random.default_rng(seed)
    parts = []
    step = max(1, _CHUNK // rows)
    for start in range(0, resamples, step):
        number = min(step, resamples - start)
        drawn = rng.integers(0, rows, (number, rows))
        drawn += rows * np.arange(number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=number * rows).reshape(number, rows)
        parts.append(times.astype(np.float64) @ table)
    return np.concatenate(parts)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean; NaN where nothing was counted."""
    found: np.ndarray = np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)
    return found


def _estimate(value: float, drawn: np.ndarray, level: float, images: int, masks: int) -> Estimate:
    """Percentiles of the resamples; those without a mask say nothing and are left out."""
    if images < 2:
        return Estimate(None if np.isnan(value) else value, None, None, images, masks)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), images, masks)
