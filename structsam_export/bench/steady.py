"""Warm up until times no longer move: clocks rise, and compilers work on in the background."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

WINDOW = 5  # runs
TOLERANCE = 0.02
MOST_WINDOWS = 20


def warm_up(time_once: Callable[[], float | None]) -> dict[str, Any] | None:
    """Run windows of `WINDOW` runs until the medians of two in a row agree within `TOLERANCE`.

    Args:
        time_once: runs once and returns its time.

    Returns:
        `runs`, `difference` of the last two medians, and whether they are `steady`; None when there
        is no time to be had.
    """
    before: float | None = None
    difference = float("inf")
    runs = 0
    while runs < MOST_WINDOWS * WINDOW:
        times = []
        for _ in range(WINDOW):
            if (ms := time_once()) is None:
                return None
            times.append(ms)
        runs += WINDOW
        now = median(times)
        if before is not None:
            difference = abs(now - before) / before
            if difference <= TOLERANCE:
                break
        before = now
    return {
        "runs": runs,
        "difference": round(difference, 4),
        "steady": difference <= TOLERANCE,
    }
