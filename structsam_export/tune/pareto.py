"""Which of many (cost, loss) are worth having: the frontier, its layers, and one chosen point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Pair(NamedTuple):
    """A cost and a loss, both the less the better."""

    cost: float
    loss: float


def frontier(pairs: Sequence[Pair]) -> list[int]:
    """Return the indices of pairs that no other beats in one and equals in the other, by cost.

    >>> frontier([Pair(3, 0.0), Pair(1, 0.5), Pair(2, 0.5), Pair(2, 0.1)])
    [1, 3, 0]
    """
    best, found = math.inf, []
    for index in sorted(range(len(pairs)), key=lambda i: (pairs[i].cost, pairs[i].loss, i)):
        if pairs[index].loss < best:
            best = pairs[index].loss
            found.append(index)
    return found


def best_layers(pairs: Sequence[Pair], count: int) -> list[int]:
    """Return `count` indices: the frontier, then the frontier of what is left, and so on.

    Of a layer that is too long, those evenly spread over its costs stay, both ends among them.
    """
    left: list[int] = list(range(len(pairs)))
    found: list[int] = []
    while left and len(found) < count:
        layer = [left[i] for i in frontier([pairs[i] for i in left])]
        left = [i for i in left if i not in layer]
        found += spread(layer, count - len(found))
    return found


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items evenly spread over a sequence, both ends among them.

    >>> spread("abcde", 3)
    ['a', 'c', 'e']
    """
    if len(items) <= count:
        return list(items)
    if count < 2:
        return list(items[:count])
    places = [round(i * (len(items) - 1) / (count - 1)) for i in range(count)]
    return [items[i] for i in places]


def fastest_within(pairs: Sequence[Pair], max_loss: float) -> int | None:
    """Return the cheapest whose loss is at most `max_loss`; None where there is none."""
    within = [i for i, pair in enumerate(pairs) if pair.loss <= max_loss]
    return min(within, key=lambda i: (pairs[i].cost, pairs[i].loss), default=None)


def best_within(pairs: Sequence[Pair], max_cost: float) -> int | None:
    """Return the one of least loss whose cost is at most `max_cost`; None where there is none."""
    within = [i for i, pair in enumerate(pairs) if pair.cost <= max_cost]
    return min(within, key=lambda i: (pairs[i].loss, pairs[i].cost), default=None)


def knee(pairs: Sequence[Pair]) -> int:
    """Return where the frontier turns: one step further costs more loss than it saves time.

    Both ends of the frontier are brought to 0 and 1, costs by their logarithm; the knee is the
    point of least sum.
    """
    ends = frontier(pairs)
    first, last = pairs[ends[0]], pairs[ends[-1]]
    width = math.log(last.cost / first.cost) or 1.0
    height = (first.loss - last.loss) or 1.0

    def total(index: int) -> tuple[float, float]:
        cost, loss = pairs[index]
        found = math.log(cost / first.cost) / width + (loss - last.loss) / height
        return round(found, 9), loss

    return min(ends, key=total)
