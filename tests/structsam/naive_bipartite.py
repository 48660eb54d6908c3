"""The ToMe family again, slowly: methods.md sections 1-4 and 6, and StructSAM without cells.

Sources and destinations differ from method to method; the matching does not. Float64, loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.structsam.naive_plan import Groups, cosines, make_groups, ranked
from tests.structsam.naive_structsam import cells_of


def most_similar(similarity, source: int, destinations: Sequence[int]) -> tuple[float, int]:
    """The best destination; of equals the one listed first."""
    best, chosen, row = -math.inf, -1, similarity[source].tolist()
    for destination in destinations:
        if row[destination] > best:
            best, chosen = row[destination], int(destination)
    return best, chosen


def merge_best_edges(similarity, destinations: Sequence[int], removed: int) -> Groups:
    """ToMe, steps 2-4: the R sources most similar to their best destination join it."""
    taken = {int(d) for d in destinations}
    sources = [i for i in range(len(similarity)) if i not in taken]
    edges = [most_similar(similarity, source, destinations) for source in sources]
    order = ranked([score for score, _ in edges], largest_first=True)
    joins = {sources[i]: edges[i][1] for i in order[:removed]}
    anchors = [*destinations, *(sources[i] for i in order[removed:])]
    return make_groups(anchors, joins)


def merge_best_edges_of_list(
    similarity, sources: Sequence[int], destinations: Sequence[int], removed: int
) -> Groups:
    """The same where the sources come in an order of their own (cell by cell)."""
    edges = [most_similar(similarity, source, destinations) for source in sources]
    order = ranked([score for score, _ in edges], largest_first=True)
    joins = {sources[i]: edges[i][1] for i in order[:removed]}
    return make_groups([*destinations, *(sources[i] for i in order[removed:])], joins)


def merge_alternate(
    similarity, order: Sequence[int], removed: int, lower_token_first: bool
) -> Groups:
    """PiToMe: positions 0, 2, ... of the first 2R join the most similar of positions 1, 3, ..."""
    first = order[: 2 * removed]
    destinations = sorted(first[1::2]) if lower_token_first else first[1::2]
    joins = {s: most_similar(similarity, s, destinations)[1] for s in first[0::2]}
    return make_groups([*order[2 * removed :], *destinations], joins)


def merge_fourths(similarity, order: Sequence[int], removed: int) -> Groups:
    """StructSAM without cells (7.4): every fourth of the first 4R/3 is a destination."""
    assert removed % 3 == 0
    first = order[: 4 * removed // 3]
    joins = {
        token: most_similar(similarity, token, first[::4])[1]
        for place, token in enumerate(first)
        if place % 4
    }
    return make_groups([*order[4 * removed // 3 :], *first[::4]], joins)


def split_cells(keys, grid) -> tuple[list[int], list[int]]:
    """The token of least key of every 2x2 cell, and the others, both cell by cell."""
    destinations, sources = [], []
    for cell in cells_of(grid):
        best = min(cell, key=lambda token: (float(keys[token]), cell.index(token)))
        destinations.append(best)
        sources += [token for token in cell if token != best]
    return destinations, sources


def padding_first(keys, padding) -> np.ndarray:
    """Keys of an ascending order in which every padding token comes before all real ones."""
    keys = np.asarray(keys, np.float64)
    return keys if padding is None else np.where(padding, -np.inf, keys)


def gradtome(tokens, energy, grid, removed, variant, padding=None) -> Groups:
    similarity = cosines(tokens, padding)
    if variant == "sorted":
        order = ranked(padding_first(energy, padding))
        return merge_alternate(similarity, order, removed, lower_token_first=False)
    destinations, sources = split_cells(energy, grid)
    return merge_best_edges_of_list(similarity, sources, destinations, removed)


def pitome_energy(tokens, margin: float, alpha: float, padding=None) -> np.ndarray:
    """E_i = 1/n sum_j ELU(cos_ij - margin), the token itself included; the code's form."""
    similarity = cosines(tokens, padding)
    energy = []
    for row in similarity.tolist():
        total = 0.0
        for cosine in row:
            t = cosine - margin
            total += t if t > 0 else alpha * math.expm1(t)
        energy.append(total / len(row))
    return np.array(energy)


def pitome(tokens, grid, removed, variant, margin, alpha, padding=None) -> Groups:
    similarity = cosines(tokens, padding)
    keys = padding_first(-pitome_energy(tokens, margin, alpha, padding), padding)
    if variant == "protected":
        return merge_alternate(similarity, ranked(keys), removed, lower_token_first=True)
    destinations, sources = split_cells(keys, grid)
    edges = [most_similar(similarity, source, sorted(destinations)) for source in sources]
    order = ranked([score for score, _ in edges], largest_first=True)
    joins = {sources[i]: edges[i][1] for i in order[:removed]}
    return make_groups([*destinations, *(sources[i] for i in order[removed:])], joins)


def structsam_without_cells(tokens, energy, removed, padding=None, inside=None) -> Groups:
    keys = padding_first(energy, padding)
    late = np.zeros(len(keys), bool) if inside is None else np.asarray(inside, bool)
    order = sorted(range(len(keys)), key=lambda i: (bool(late[i]), float(keys[i]), i))
    return merge_fourths(cosines(tokens, padding), order, removed)
