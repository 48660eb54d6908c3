"""Successive halving over points: counted, then compared on few photos, on all, then measured.

1. Every point in floats is judged on a few photos, its cost counted in multiply-adds.
2. Those on the best layers of (cost, loss) are judged on all search photos.
3. The single levers, and the best of step 2 in floats and in INT8, are measured on this machine.
4. Lines through what was measured predict the rest; what would be on the frontier is measured as
   well, until nothing would.
5. Of what was measured, one is chosen. Photos that no step saw verify it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from structsam.errors import UserError
from structsam_export.tune.pareto import (
    Pair,
    best_layers,
    best_within,
    fastest_within,
    frontier,
    knee,
    spread,
)
from structsam_export.tune.points import Point

#: Points that step 2 judges, and that steps 3 and 4 measure, stock not counted.
MOST_JUDGED, MOST_MEASURED = 20, 29
_FIRST, _GROUP = 4, 4  # measured in step 3 beside single levers; points that take turns together
_NEAR = (0.6, 1.02)  # of a largest latency: what is worth measuring for it
Say = Callable[[str], None]


class Landscape(Protocol):
    """What a search can ask."""

    def gmac(self, point: Point) -> float:
        """Return the multiply-adds of a point / 10^9."""

    def loss(self, points: Sequence[Point], photos: str) -> dict[Point, float]:
        """Return mean losses on `few`, `search` or `held_out` photos."""

    def milliseconds(self, points: Sequence[Point]) -> dict[Point, float]:
        """Return latencies; a point that does not run here is left out."""


@dataclass(frozen=True)
class Limit:
    """What is sought: the least loss within a latency, the least latency within a loss, or a knee.

    Args:
        max_latency: milliseconds.
        max_loss: mean disagreement of masks, 0 to 1.
    """

    max_latency: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if self.max_latency is not None and self.max_loss is not None:
            raise UserError(
                "`max_latency=` and `max_loss=` cannot both be kept: each leaves the other open. "
                "Give one of them"
            )
        if self.max_latency is not None and not self.max_latency > 0:
            raise UserError(f"a latency of {self.max_latency:g} ms cannot be met. Give one above 0")
        if self.max_loss is not None and not 0 < self.max_loss < 1:
            raise UserError(f"a loss of {self.max_loss:g} cannot be met. Give one between 0 and 1")

    @property
    def text(self) -> str:
        """Say what is sought."""
        if self.max_latency is not None:
            return f"the least loss within {self.max_latency:g} ms"
        if self.max_loss is not None:
            return f"the fastest within a loss of {self.max_loss:g}"
        return "the knee of the frontier: from there on, less time costs more loss than it saves"


@dataclass(frozen=True)
class Measured:
    """One point that was measured.

    Args:
        ms: latency of the encoder.
        loss, held_out: mean loss of the search photos, and of those that the search did not see
            (None where it was not asked).
    """

    point: Point
    gmac: float
    ms: float
    loss: float
    held_out: float | None = None

    @property
    def pair(self) -> Pair:
        """What the search compares."""
        return Pair(self.ms, self.loss)


def search(
    landscape: Landscape,
    points: Sequence[Point],
    limit: Limit = Limit(),
    with_int8: bool = True,
    say: Say = lambda text: None,
) -> list[Measured]:
    """Measure what is worth it; see the module's docstring.

    Args:
        points: all in floats, the unmerged one at the trained size first.

    Returns:
        What was measured, fastest first, stock among it.
    """
    gmac = {point: landscape.gmac(point) for point in points}
    few = landscape.loss(points, "few")
    judged = _best(points, gmac, few, MOST_JUDGED)
    single = _single_levers(points, gmac, few)
    loss = landscape.loss(list(dict.fromkeys([*single, *judged])), "search")
    first = _best(list(loss), gmac, loss, _FIRST)
    chosen = list(dict.fromkeys([*single, *first]))
    if with_int8:
        chosen = _with_int8(chosen, {points[0], *first})
    ms: dict[Point, float] = {}
    tried: set[Point] = set()

    def take(some: Iterable[Point]) -> None:
        room = MOST_MEASURED - len(tried)
        for group in _groups(list(dict.fromkeys(p for p in some if p not in tried))[:room]):
            tried.update(group)
            ms.update(landscape.milliseconds(group))
            loss.update(landscape.loss([p for p in group if p in ms and p not in loss], "search"))

    take(chosen)
    if not ms:
        raise UserError("no encoder could be measured; see above")
    while (some := _promising(ms, tried, loss, gmac, limit)) and len(tried) < MOST_MEASURED:
        take(some)
    stock = Point(stock=True)
    final = landscape.milliseconds([stock, *ms])  # all beside the same stock encoder
    gmac[stock], loss[stock] = gmac[points[0]], 0.0
    found = [Measured(p, gmac[p.unquantized], final[p], loss[p]) for p in final]
    say(f"{len(ms)} encoders were measured, of {len(points)} and their INT8 forms")
    return sorted(found, key=lambda each: each.pair)


def choose(found: Sequence[Measured], limit: Limit) -> Measured:
    """Return what the limit asks for.

    Raises:
        UserError: nothing keeps it; the message names what comes nearest.
    """
    pairs = [each.pair for each in found]
    if limit.max_latency is not None:
        index = best_within(pairs, limit.max_latency)
        if index is None:
            best = min(found, key=lambda each: each.ms)
            raise UserError(
                f"nothing runs within {limit.max_latency:g} ms here: the fastest encoder that was "
                f"measured, {best.point.key}, takes {best.ms:.0f} ms at a loss of {best.loss:.3f}. "
                "Allow more time, or take fewer pixels, a smaller model or a faster backend"
            )
        return found[index]
    if limit.max_loss is not None:
        index = fastest_within(pairs, limit.max_loss)
        assert index is not None  # stock loses nothing
        return found[index]
    return found[knee(pairs)]


def best_single_lever(found: Sequence[Measured], max_ms: float) -> Measured | None:
    """Return the single lever of least loss that is no slower, by the search photos."""
    single = [e for e in found if len(e.point.levers) < 2 and not _mixed(e.point)]
    index = best_within([each.pair for each in single], max_ms)
    return None if index is None else single[index]


def prefer_single_lever(chosen: Measured, single: Measured | None, limit: Limit) -> bool:
    """Whether the single lever, no slower, loses less on held-out photos and keeps the limit."""
    if single is None or single.held_out is None or chosen.held_out is None:
        return False
    within = limit.max_loss is None or single.loss <= limit.max_loss
    return within and single.held_out < chosen.held_out


def on_frontier(found: Sequence[Measured]) -> list[Measured]:
    """Return those that no other beats in time and loss, fastest first."""
    return [found[index] for index in frontier([each.pair for each in found])]


def _best(
    points: Sequence[Point], gmac: Mapping[Point, float], loss: Mapping[Point, float], count: int
) -> list[Point]:
    pairs = [Pair(gmac[point], loss[point]) for point in points]
    return [points[index] for index in best_layers(pairs, count)]


def _single_levers(
    points: Sequence[Point], gmac: Mapping[Point, float], loss: Mapping[Point, float]
) -> list[Point]:
    """Unmerged, three sizes alone, and merging alone: the best placement at each rate."""
    sizes = [point for point in points if point.levers == ("size",)]
    merging = [p for p in points if p.levers == ("merging",) and not _mixed(p)]
    return [points[0], *spread(sizes, 3), *_best(merging, gmac, loss, 3)]


def _with_int8(points: Sequence[Point], floats: set[Point]) -> list[Point]:
    """Put the INT8 form behind those points that are in `floats`."""
    found = []
    for point in points:
        found += [point, point.quantized] if point in floats else [point]
    return found


def _promising(
    ms: Mapping[Point, float],
    tried: Collection[Point],
    loss: Mapping[Point, float],
    gmac: Mapping[Point, float],
    limit: Limit,
) -> list[Point]:
    """Return a group of what was not tried and lies on the frontier, if a line predicts well.

    Points of a precision that was never measured are not predicted.
    """
    guess: dict[Point, Pair] = {point: Pair(ms[point], loss[point]) for point in ms}
    for precision in {point.precision for point in ms}:
        known = [point for point in ms if point.precision == precision]
        slope, start = _line([gmac[p.unquantized] for p in known], [ms[p] for p in known])
        for floats in [point for point in loss if "int8" not in point.levers]:
            point = floats if floats.precision == precision else floats.quantized
            if point.precision == precision and point not in tried:
                guess[point] = Pair(max(start + slope * gmac[floats], 1e-6), loss[floats])
    points = list(guess)
    best = [points[index] for index in frontier(list(guess.values()))]
    if limit.max_latency is not None:
        low, high = (share * limit.max_latency for share in _NEAR)
        near = [point for point in points if low <= guess[point].cost <= high]
        near = sorted((p for p in near if p not in tried), key=lambda point: guess[point].loss)
        best = [*near[:_GROUP], *best]
    return spread(list(dict.fromkeys(p for p in best if p not in tried)), _GROUP)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and start of a line through few points; through 0 where they are too few."""
    if len(set(x)) < 3:
        return float(np.mean(y) / np.mean(x)), 0.0
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start)


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    return [list(points[i : i + _GROUP]) for i in range(0, len(points), _GROUP)]


def _mixed(point: Point) -> bool:
    return isinstance(point.rate, tuple)
