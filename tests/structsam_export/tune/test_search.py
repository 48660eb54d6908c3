"""The search on a landscape whose frontier is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from structsam.errors import UserError
from structsam_export.tune.pareto import Pair, best_within, frontier
from structsam_export.tune.points import Point
from structsam_export.tune.search import (
    MOST_JUDGED,
    MOST_MEASURED,
    Limit,
    Measured,
    best_single_lever,
    choose,
    on_frontier,
    prefer_single_lever,
    search,
)

SIZES = (None, 896, 768, 640, 512)
MIX = (0.25, 0.7)
RATES = (0.25, 0.5, 0.7, MIX)
STOCK_MS = 1000.0


class Known:
    """Levers that multiply in cost and add in loss; mild ones together beat one pushed hard."""

    def __init__(self, int8_ms: float = 0.6, refused: Sequence[Point] = ()) -> None:
        self.int8_ms, self.refused = int8_ms, refused
        self.asked: Counter[str] = Counter()
        self.measured: list[Point] = []

    def gmac(self, point: Point) -> float:
        share = (point.image_size or 1024) / 1024
        rate = 0.4 if isinstance(point.rate, tuple) else point.rate
        reach = {"attention": 0.6, "block": 0.8, "stage": 0.9}[point.placement]
        return 50 * share**2 * (1 - reach * rate)

    def true_loss(self, point: Point) -> float:
        if point.stock:
            return 0.0
        size = 0.00002 * (1024 - (point.image_size or 1024)) ** 1.3
        rate = 0.3 if isinstance(point.rate, tuple) else point.rate
        worse = {"attention": 1.0, "block": 3.0, "stage": 1.1}[point.placement]
        return size + 0.2 * worse * rate**2 + (0.004 if "int8" in point.levers else 0.0)

    def true_ms(self, point: Point) -> float:
        if point.stock:
            return STOCK_MS
        return (60 + 18 * self.gmac(point)) * (self.int8_ms if "int8" in point.levers else 1)

    def loss(self, points: Sequence[Point], photos: str) -> dict[Point, float]:
        self.asked[photos] += len(points)
        bias = {"few": 1.1, "search": 1.0, "held_out": 0.95}[photos]
        return {point: bias * self.true_loss(point) for point in points}

    def milliseconds(self, points: Sequence[Point]) -> dict[Point, float]:
        self.measured += [p for p in points if p not in self.measured]
        return {point: self.true_ms(point) for point in points if point not in self.refused}


def all_points() -> list[Point]:
    merged = [
        Point(size, rate, placement)
        for size in SIZES
        for placement in ("attention", "block", "stage")
        for rate in RATES
        if placement != "stage" or rate != MIX
    ]
    return [Point(size) for size in SIZES] + merged


def true_frontier(land: Known) -> list[Pair]:
    points = [form for p in all_points() for form in (p, p.quantized)]
    pairs = [Pair(land.true_ms(p), land.true_loss(p)) for p in points]
    return [pairs[index] for index in frontier(pairs)]


@pytest.mark.parametrize("int8_ms", [0.5, 1.4])
def test_it_finds_the_frontier_with_few_measurements(int8_ms: float) -> None:
    land = Known(int8_ms)
    found = search(land, all_points())
    assert len(land.measured) <= MOST_MEASURED + 1 and land.asked["few"] == len(all_points())
    assert land.asked["search"] < 2 * (MOST_JUDGED + MOST_MEASURED)
    assert land.asked["held_out"] == 0
    best = [each.pair for each in on_frontier(found)]
    for limit in (150, 250, 400, 700):
        true = true_frontier(land)
        reachable = true[best_within(true, limit) or 0].loss
        index = best_within(best, limit)
        assert index is not None and best[index].loss <= 1.35 * reachable + 0.003


@pytest.mark.parametrize("limit", [130.0, 200.0, 300.0, 500.0])
def test_no_single_lever_beats_the_choice(limit: float) -> None:
    found = search(Known(), all_points(), Limit(max_latency=limit))
    chosen = choose(found, Limit(max_latency=limit))
    assert chosen.ms <= limit
    single = best_single_lever(found, chosen.ms)
    assert single is None or chosen.loss <= single.loss
    assert limit < 500 or len(chosen.point.levers) > 1


@pytest.mark.parametrize("limit", [90.0, 130.0, 220.0, 250.0, 300.0, 380.0])
def test_near_a_largest_latency_it_finds_the_best(limit: float) -> None:
    land, sought = Known(), Limit(max_latency=limit)
    chosen = choose(search(land, all_points(), sought), sought)
    true = true_frontier(land)
    assert chosen.loss == pytest.approx(true[best_within(true, limit) or 0].loss, rel=0.05)


def test_single_levers_and_stock_are_measured() -> None:
    found = search(Known(), all_points())
    levers = Counter(each.point.levers for each in found)
    assert levers[("size",)] >= 3 and levers[("merging",)] >= 3 and levers[("int8",)] == 1
    stock = next(each for each in found if each.point.stock)
    assert (stock.ms, stock.loss) == (STOCK_MS, 0.0)
    assert [each.ms for each in found] == sorted(each.ms for each in found)


def test_what_does_not_run_is_left_out() -> None:
    refused = [p.quantized for p in all_points()]
    found = search(Known(refused=refused), all_points())
    assert not any("int8" in each.point.levers for each in found)
    assert search(Known(), all_points(), with_int8=False)
    with pytest.raises(UserError, match="no encoder could be measured"):
        search(Known(refused=[*all_points(), *refused]), all_points())


def test_a_limit_decides() -> None:
    found = [
        Measured(Point(stock=True), 50, 1000, 0.0),
        Measured(Point(768), 25, 500, 0.02),
        Measured(Point(768, 0.5, "stage"), 12, 250, 0.03),
        Measured(Point(512, 0.7, "block"), 5, 100, 0.4),
    ]
    assert choose(found, Limit(max_loss=0.025)) == found[1]
    assert choose(found, Limit(max_loss=0.001)) == found[0]
    assert choose(found, Limit(max_latency=600)) == found[1]
    assert choose(found, Limit()) == found[2]
    with pytest.raises(UserError, match=r"nothing runs within 50 ms here.*100 ms at a loss of 0.4"):
        choose(found, Limit(max_latency=50))
    single = best_single_lever(found, 600)
    assert single == found[1] and best_single_lever(found, 200) is None


def test_a_single_lever_that_is_better_on_photos_not_seen_is_taken() -> None:
    chosen = Measured(Point(768, 0.5), 12, 250, 0.03, held_out=0.05)
    single = Measured(Point(640), 13, 240, 0.04, held_out=0.045)
    assert prefer_single_lever(chosen, single, Limit())
    assert prefer_single_lever(chosen, single, Limit(max_latency=260))
    assert not prefer_single_lever(chosen, single, Limit(max_loss=0.035)), "it breaks the limit"
    assert not prefer_single_lever(chosen, replace(single, held_out=0.06), Limit())
    assert not prefer_single_lever(chosen, None, Limit())


def test_a_mix_of_rates_is_no_single_lever() -> None:
    mix = Measured(Point(rate=MIX), 20, 400, 0.001)
    assert best_single_lever([mix], 1e9) is None


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_latency": 1.0, "max_loss": 0.1}, "cannot both be kept"),
        ({"max_latency": 0.0}, "cannot be met"),
        ({"max_loss": 0.0}, "between 0 and 1"),
        ({"max_loss": 1.5}, "between 0 and 1"),
    ],
)
def test_limits_that_cannot_be(limit: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Limit(**limit)


def test_points_have_names_of_their_own() -> None:
    points = [form for p in all_points() for form in (p, p.quantized)] + [Point(stock=True)]
    assert len({point.key for point in points}) == len(points)
    for point in all_points():
        assert point.quantized.unquantized == point
        assert replace(point, precision="fp16").quantized.precision == "int8"
