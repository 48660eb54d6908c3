"""The search for the least cost, against trying every schedule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from structsam_export.tune.merging_loss import Loss
from structsam_export.tune.schedule_search import TRIES, Candidate, Sensitivity, mean

RATES = (0.0, 0.3, 0.6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), share=st.floats(0.1, 1.0), power=st.sampled_from([1, 2]))
def test_the_least_cost_is_within_a_step_of_that_of_all_schedules(seed, share, power):
    """Losses of blocks add up, or their squares do; photos have been told which."""
    random = np.random.default_rng(seed)
    loss = np.sort(random.random((4, 3)), 1) * [0, 1, 1]
    cost = -np.sort(-random.random((4, 3)), 1) + 0.5
    blocks = range(4)
    sensitivity = Sensitivity("attention", RATES, loss, cost)

    def total(picked):
        return float((loss[blocks, picked] ** power).sum() ** (1 / power))

    every = [list(picked) for picked in itertools.product(range(3), repeat=4)]
    limit = share * total([2] * 4)
    least = min(cost[blocks, picked].sum() for picked in every if total(picked) <= limit)
    tried = []

    def measure(candidate: Candidate) -> Candidate:
        tried.append(candidate)
        value = total([RATES.index(rate) for rate in candidate.rates])
        return replace(candidate, search=(Loss(value, 0.0),))

    found = list(sensitivity.within_loss(limit, measure))
    assert len(tried) <= TRIES["cost"]
    assert all(mean(candidate.search) <= limit for candidate in found)
    span = float(cost.max(1).sum() - cost.min(1).sum())
    # six halvings leave 1/64 of the range; the choice of rates counts costs in steps
    best = min((c.cost for c in found), default=float(cost.max(1).sum()))
    assert least - 1e-9 <= best <= least + 0.03 * span
