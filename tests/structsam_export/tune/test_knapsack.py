"""The knapsack against all combinations."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam_export.tune import knapsack as schedule
from structsam_export.tune.knapsack import choose_rates


def by_hand(loss, cost, budget):
    blocks, candidates = loss.shape
    rows = np.arange(blocks)
    every = np.array(list(itertools.product(range(candidates), repeat=blocks)))
    total, spent = (values[rows, every].sum(1) for values in (loss, cost))
    return total[spent <= budget].min()


@given(st.integers(0, 2**32 - 1))
def test_equals_all_combinations(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 5)))
    # whole costs and a budget of 4096 make every bin exact
    cost = rng.integers(0, 1200, shape).astype(float)
    loss = rng.random(shape)
    floor = cost.min(1).sum()
    budget = floor + 4096
    chosen = choose_rates(loss, cost, budget)
    rows = np.arange(shape[0])
    assert cost[rows, chosen].sum() <= budget
    assert loss[rows, chosen].sum() == pytest.approx(by_hand(loss, cost, budget))


@given(st.integers(0, 2**32 - 1))
def test_never_exceeds_the_budget_and_comes_near_the_best(seed):
    rng = np.random.default_rng(seed)
    cost, loss = rng.random((8, 3)) * 1e9, rng.random((8, 3))
    budget = float(cost.min(1).sum() + rng.random() * (cost.max(1) - cost.min(1)).sum())
    chosen = choose_rates(loss, cost, budget)
    rows = np.arange(8)
    assert cost[rows, chosen].sum() <= budget * (1 + 1e-12)
    spare = budget - 8 * (budget - cost.min(1).sum()) / 4096
    if spare >= cost.min(1).sum():
        assert loss[rows, chosen].sum() <= by_hand(loss, cost, spare) + 1e-12


def test_what_is_not_finite_is_never_chosen():
    loss = np.array([[np.inf, 5.0], [0.0, np.inf]])
    assert choose_rates(loss, np.zeros((2, 2)), 1.0) == [1, 0]


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(UserError, match="costs 5, and the budget is 4"):
        choose_rates(np.zeros((1, 2)), np.array([[9.0, 5.0]]), 4.0)


def test_the_cheapest_can_be_had_exactly():
    cost = np.array([[3.3, 1.1], [2.7, 0.9]])
    assert choose_rates(np.array([[0.0, 1], [0, 1]]), cost, float(cost.min(1).sum())) == [1, 1]


def test_the_example():
    assert doctest.testmod(schedule).failed == 0
