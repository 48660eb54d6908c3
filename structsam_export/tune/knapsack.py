"""Rates per block: the least loss that a budget allows, by dynamic programming."""

from __future__ import annotations

import numpy as np

from structsam.errors import UserError

_BINS = 4096


def choose_rates(loss: np.ndarray, cost: np.ndarray, budget: float) -> list[int]:
    """Choose one candidate per block so that the losses' sum is least within the budget.

    The multiple-choice knapsack, solved over the budget cut into 4096 parts. Costs are rounded up,
    so the choice never exceeds the budget; it may miss one that is within 0.02 % per block of it.

    Args:
        loss: [B, R], of every block at every candidate rate; only finite ones may be chosen.
        cost: [B, R], not negative, in the unit of `budget`.
        budget: what the chosen costs may add up to.

    Returns:
        The index of the candidate of every block, B numbers in 0..R-1.

    Raises:
        UserError: even the cheapest candidates cost more than the budget.

    >>> choose_rates(np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[4.0, 2.0], [4.0, 2.0]]), 6.0)
    [1, 0]
    """
    cheapest = float(np.where(np.isfinite(loss), cost, np.inf).min(1).sum())
    if not cheapest <= budget:
        raise UserError(
            f"the least that can be had costs {cheapest:g}, and the budget is {budget:g}. Raise "
            "the budget, or allow higher rates"
        )
    blocks, candidates = loss.shape
    # what cannot be saved is taken out first, so that all bins resolve the choice itself
    floor = cost.min(1)
    unit = max((budget - float(floor.sum())) / _BINS, np.finfo(float).tiny)
    with np.errstate(over="ignore"):  # a budget of just the floor: any step is too many
        steps = np.ceil((cost - floor[:, None]) / unit - 1e-9)
    steps = np.minimum(steps, _BINS + 1).astype(np.int64)
    best = np.full(_BINS + 1, np.inf)
    best[0] = 0.0
    chosen = np.zeros((blocks, _BINS + 1), np.int64)
    for block in range(blocks):
        options = np.full((candidates, _BINS + 1), np.inf)
        for index, (own, step) in enumerate(zip(loss[block], steps[block], strict=True)):
            if step <= _BINS and np.isfinite(own):
                options[index, step:] = best[: _BINS + 1 - step] + own
        chosen[block] = options.argmin(0)
        best = options.min(0)
    place = int(best.argmin())
    picked = []
    for block in reversed(range(blocks)):
        picked.append(int(chosen[block, place]))
        place -= int(steps[block, picked[-1]])
    return picked[::-1]
