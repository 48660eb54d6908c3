"""Frontiers, layers and choices, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from structsam_export.tune.pareto import (
    Pair,
    best_layers,
    best_within,
    fastest_within,
    frontier,
    knee,
    spread,
)


@pytest.mark.parametrize("seed", range(5))
def test_a_frontier_is_what_nothing_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [Pair(*map(float, pair)) for pair in rng.integers(1, 12, (30, 2))]

    def beaten(pair: Pair) -> bool:
        return any(o != pair and o.cost <= pair.cost and o.loss <= pair.loss for o in pairs)

    found = [pairs[index] for index in frontier(pairs)]
    assert set(found) == {pair for pair in pairs if not beaten(pair)}
    assert found == sorted(found) and len(set(found)) == len(found)


def test_layers_keep_the_best_and_spread_what_is_too_many() -> None:
    line = [Pair(float(cost), 10.0 - cost) for cost in range(1, 10)]
    behind = [Pair(cost + 0.5, loss + 3) for cost, loss in line]
    assert best_layers(behind + line, 9) == list(range(9, 18))
    assert best_layers(behind + line, 3) == [9, 13, 17], "both ends and the middle"
    assert sorted(best_layers(line, 99)) == list(range(9))
    assert spread([1, 2, 3], 1) == [1] and spread([], 2) == []


def test_choices_keep_their_limits() -> None:
    pairs = [Pair(4, 0.0), Pair(2, 0.05), Pair(1, 0.3), Pair(3, 0.2)]
    assert best_within(pairs, 3.5) == 1 and best_within(pairs, 1) == 2
    assert best_within(pairs, 0.5) is None
    assert fastest_within(pairs, 0.25) == 1 and fastest_within(pairs, 0.0) == 0
    assert fastest_within(pairs[1:], 0.01) is None


def test_the_knee_is_where_the_frontier_turns() -> None:
    assert knee([Pair(8, 0.0), Pair(4, 0.01), Pair(2, 0.02), Pair(1, 0.4)]) == 2
    assert knee([Pair(8, 0.0), Pair(4, 0.38), Pair(2, 0.39), Pair(1, 0.4)]) == 0
    assert knee([Pair(1, 0.0)]) == 0
    curve = [Pair(2.0**i, math.exp(-i)) for i in range(8)]
    ends = [(math.log2(c) / 7, (x - curve[-1].loss) / (1 - curve[-1].loss)) for c, x in curve]
    assert knee(curve) == min(range(8), key=lambda i: sum(ends[i]))
