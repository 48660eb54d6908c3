"""What the slow references share: plans as sets of groups, and the number of removed tokens.

Plain Python and numpy in float64, from methods.md; nothing here imports the product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

#: methods.md 0.5 and our choice of numbers: padding merges first, and only with padding.
REAL_AND_PADDING, BOTH_PADDING = -2.0, 2.0


class Groups(NamedTuple):
    """Members of every slot by its anchor; slots of one token are groups of one."""

    members: dict[int, tuple[int, ...]]

    @property
    def sizes(self) -> dict[int, int]:
        return {anchor: len(tokens) for anchor, tokens in self.members.items()}


def make_groups(anchors: Iterable[int], joins: dict[int, int]) -> Groups:
    """Anchors stand for themselves; `joins` says to which anchor every other token goes."""
    members = {int(anchor): [int(anchor)] for anchor in anchors}
    for token, anchor in joins.items():
        members[int(anchor)].append(int(token))
    return Groups({anchor: tuple(sorted(tokens)) for anchor, tokens in members.items()})


def groups_of_plan(plan, b: int) -> Groups:
    """The product's plan of map b, its slots told by their anchors."""
    anchors, slots = plan.anchor_of_slot[b].tolist(), plan.slot_of_token[b].tolist()
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    assert len(members) == len(anchors), "two slots stand at one place"
    for token, slot in enumerate(slots):
        members[anchors[slot]].append(token)
    return Groups({anchor: tuple(tokens) for anchor, tokens in members.items()})


def means(groups: Groups, tokens) -> dict[int, np.ndarray]:
    """Plain mean of every slot's tokens."""
    tokens = np.asarray(tokens, np.float64)
    found = {}
    for anchor, members in groups.members.items():
        total = np.zeros(tokens.shape[1])
        for token in members:
            total = total + tokens[token]
        found[anchor] = total / len(members)
    return found


def own_features(groups: Groups, tokens) -> dict[int, np.ndarray]:
    """`replace`: the anchor's feature, whoever joins it."""
    return {anchor: np.asarray(tokens, np.float64)[anchor] for anchor in groups.members}


def assert_same_plan(plan, b: int, expected: Groups) -> None:
    found = groups_of_plan(plan, b)
    assert set(found.members) == set(expected.members), "other tokens stand for the slots"
    assert found.members == expected.members
    sizes = plan.size_of_slot[b].tolist()
    assert dict(zip(plan.anchor_of_slot[b].tolist(), sizes, strict=True)) == expected.sizes


def assert_same_features(plan, b: int, merged, expected: dict[int, np.ndarray]) -> None:
    for slot, anchor in enumerate(plan.anchor_of_slot[b].tolist()):
        np.testing.assert_allclose(merged[b, slot].numpy(), expected[anchor], rtol=1e-5, atol=2e-6)


def num_removed(tokens: int, rate, cap: int, align: int = 1, finest: int = 1, step: int = 3) -> int:
    """R: the smallest multiple of `step` of at least rate*N, near the cap the smallest of all.

    Raises:
        ValueError: nothing fits.
    """
    need = math.ceil(Fraction(str(rate)) * tokens)
    fitting = [r for r in range(need, cap + 1) if (tokens - r) % align == 0 and r % finest == 0]
    whole = [r for r in fitting if r % step == 0]
    if not fitting:
        raise ValueError("no count fits")
    return (whole or fitting)[0]


def cosines(tokens, padding: Sequence[bool] | None = None) -> np.ndarray:
    """Cosine of every two tokens, 0 for a token without length, padding as above: [N, N]."""
    tokens = np.asarray(tokens, np.float64)
    unit = [row / max(math.sqrt(float(row @ row)), 1e-12) for row in tokens]
    table = np.array(unit) @ np.array(unit).T
    if padding is not None:
        pad = np.asarray(padding, bool)
        table[np.logical_and.outer(pad, pad)] = BOTH_PADDING
        table[np.logical_xor.outer(pad, pad)] = REAL_AND_PADDING
    return table


def ranked(values, largest_first: bool = False) -> list[int]:
    """Indices in order of value; of equal values the lower index first."""
    sign = -1 if largest_first else 1
    return sorted(range(len(values)), key=lambda i: (sign * float(values[i]), i))
