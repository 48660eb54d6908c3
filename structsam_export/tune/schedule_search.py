"""Search for rates per block, from what every block loses and costs at every rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from structsam_export.tune.merging_loss import Loss

#: How losses of blocks add up -> their power in the sum.
_POWERS = {"independent": 2.0, "aligned": 1.0}
_HALVINGS = 6  # of the range of costs in which a loss is looked for: 1.6 % of it are left
_POINTS = 25  # of the plot
#: What is sought -> how many candidates are measured for it, in one placement.
TRIES = {"loss": len(_POWERS), "cost": len(_POWERS) * _HALVINGS}


@dataclass(frozen=True)
class Candidate:
    """Rates per block, their cost, and their loss per search and per held-out photo."""

    name: str
    placement: str
    rates: tuple[float, ...]
    cost: float
    search: tuple[Loss, ...] = ()
    held_out: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """What each of B blocks loses and costs at each of R rates, in one placement.

    Args:
        rates: the R rates, rising.
        loss: [B, R], if the block alone merges.
        cost: [B, R], in the unit that is searched in.
    """

    placement: str
    rates: tuple[float, ...]
    loss: np.ndarray
    cost: np.ndarray

    def uniform(self, rate: float) -> Candidate:
        """Return one rate everywhere."""
        return self._picked("uniform", [self.rates.index(rate)] * len(self.loss))

    def within_cost(self, budget: float) -> Iterator[Candidate]:
        """Yield what promises the least loss, for each way losses may add up.

        Raises:
            UserError: nothing is as cheap as the budget.
        """
        for errors, power in _POWERS.items():
            picked = _choose(self.loss**power, self.cost, budget)
            yield self._picked(self._name(errors), picked)

    def within_loss(
        self, limit: float, measured: Callable[[Candidate], Candidate]
    ) -> Iterator[Candidate]:
        """Yield ever cheaper candidates whose mean measured loss is at most `limit`.

        The range between what all blocks cost at least and at most is halved again and again; sums
        of losses only say which rates fit a budget, never whether their loss is small enough.
        """
        high = float(self.cost.max(1).sum())
        for errors, power in _POWERS.items():
            low = float(self.cost.min(1).sum())
            for _ in range(_HALVINGS):
                budget = (low + high) / 2
                picked = _choose(self.loss**power, self.cost, budget)
                candidate = measured(self._picked(self._name(errors), picked))
                if mean(candidate.search) <= limit:
                    high = min(budget, candidate.cost)
                    yield candidate
                else:
                    low = budget

    def pareto(self) -> tuple[tuple[float, float], ...]:
        """Return (cost, predicted loss) for budgets from the cheapest to the dearest."""
        rows = range(len(self.loss))
        points = []
        for budget in np.linspace(self.cost.min(1).sum(), self.cost.max(1).sum(), _POINTS):
            picked = _choose(self.loss**2, self.cost, float(budget))
            loss = float((self.loss[rows, picked] ** 2).sum()) ** 0.5
            points.append((float(self.cost[rows, picked].sum()), loss))
        return tuple(points)

    def _name(self, errors: str) -> str:
        return f"{self.placement}, errors of blocks taken as {errors}"

    def _picked(self, name: str, picked: Sequence[int]) -> Candidate:
        cost = float(self.cost[range(len(self.cost)), picked].sum())
        return Candidate(name, self.placement, tuple(self.rates[i] for i in picked), cost)


def _choose(loss: np.ndarray, cost: np.ndarray, budget: float) -> list[int]:
    from structsam_export.tune.knapsack import choose_rates

    return choose_rates(loss, cost, budget)


def mean(losses: Sequence[Loss]) -> float:
    """Mean total loss of some photos."""
    return sum(loss.total for loss in losses) / len(losses)
