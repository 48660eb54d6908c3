"""CubistMerge again, slowly: methods.md section 8, line by line. Float64, loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tests.structsam.naive_plan import BOTH_PADDING, REAL_AND_PADDING, Groups, ranked


class Place(NamedTuple):
    """One token of a shortened line: where it stands, what it holds, what it looks like."""

    anchor: int
    members: tuple[int, ...]
    feature: np.ndarray
    padding: bool


def removed_per_line(grid, rate, align: int = 1) -> tuple[int, int]:
    """(rho_h, rho_w): whole lines, R as near to rate*N as they allow (8.4).

    Without `align` every axis takes one of the two counts around t(1 - sqrt(1 - r)).
    """
    height, width = grid
    most = height * width - (height - height // 2) * (width - width // 2)
    if rate * height * width > most + 1e-9:
        raise ValueError("more than half of every line")
    exact = [side * (1 - math.sqrt(1 - rate)) for side in grid]
    best = None
    for rho_h in range(height // 2 + 1):
        for rho_w in range(width // 2 + 1):
            kept = (height - rho_h) * (width - rho_w)
            removed = height * width - kept
            off = abs(rho_h - exact[0]) + abs(rho_w - exact[1])
            if align == 1 and max(abs(rho_h - exact[0]), abs(rho_w - exact[1])) >= 1:
                continue
            if align > 1 and (kept % align or removed < rate * height * width - 1e-9):
                continue
            candidate = (abs(removed - rate * height * width), off, rho_h, rho_w)
            best = candidate if best is None else min(best, candidate)
    if best is None:
        raise ValueError("no lines fit")
    return best[2], best[3]


def combine(places: list[Place], feature: str, tokens) -> np.ndarray:
    """Own value first, then the left neighbour's, then the right one's."""
    if feature == "mean":
        members = [token for place in places for token in place.members]
        return tokens[members].mean(0)
    found = places[0].feature.copy()
    for place in places[1:]:
        for channel, value in enumerate(place.feature):
            if abs(value) > abs(found[channel]):
                found[channel] = value
    return found


def shorten(line: list[Place], removed: int, feature: str, tokens) -> list[Place]:
    """One pass on one line: the best-scoring odd tokens join an even neighbour."""
    scores, goals = [], []
    for odd in range(1, len(line), 2):
        left = near(line[odd], line[odd - 1])
        right = near(line[odd], line[odd + 1]) if odd + 1 < len(line) else -math.inf
        scores.append(max(left, right))
        goals.append(odd - 1 if left >= right else odd + 1)
    chosen = {2 * j + 1: goals[j] for j in ranked(scores, largest_first=True)[:removed]}
    shorter = []
    for i, place in enumerate(line):
        if i in chosen:
            continue
        group = [place]
        group += [line[odd] for odd in (i - 1, i + 1) if chosen.get(odd) == i]
        members = tuple(sorted(token for part in group for token in part.members))
        shorter.append(Place(place.anchor, members, combine(group, feature, tokens), place.padding))
    return shorter


def near(a: Place, b: Place) -> float:
    if a.padding and b.padding:
        return BOTH_PADDING
    if a.padding or b.padding:
        return REAL_AND_PADDING
    lengths = [max(math.sqrt(float(p.feature @ p.feature)), 1e-12) for p in (a, b)]
    return float((a.feature / lengths[0]) @ (b.feature / lengths[1]))


def plan(tokens, grid, rho_h, rho_w, feature, padding=None) -> list[list[Place]]:
    """Rows first, then the columns of what is left: the smaller grid, [H - rho_h][W - rho_w]."""
    tokens = np.asarray(tokens, np.float64)
    height, width = grid
    pad = np.zeros(len(tokens), bool) if padding is None else np.asarray(padding, bool)
    places = [Place(i, (i,), tokens[i], bool(pad[i])) for i in range(height * width)]
    rows = [
        shorten(places[y * width : (y + 1) * width], rho_w, feature, tokens) for y in range(height)
    ]
    columns = [
        shorten([row[x] for row in rows], rho_h, feature, tokens) for x in range(width - rho_w)
    ]
    return [[column[y] for column in columns] for y in range(height - rho_h)]


def groups(smaller: list[list[Place]]) -> Groups:
    return Groups({place.anchor: place.members for row in smaller for place in row})
