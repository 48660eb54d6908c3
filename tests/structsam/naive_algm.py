"""ALGM again, slowly: methods.md section 5 at fixed counts. Float64, loops."""

from __future__ import annotations

import itertools

import numpy as np

from tests.structsam.naive_bipartite import most_similar
from tests.structsam.naive_plan import BOTH_PADDING, Groups, cosines, make_groups, ranked
from tests.structsam.naive_structsam import cells_of


def counts(tokens: int, removed: int, stages: str) -> tuple[int, int]:
    """Cells of the first stage and tokens that the second removes (5.4).

    Of R, a quarter goes to the second stage; whole cells, and no more than half of what is left.
    """
    if stages == "local":
        return removed // 3, 0
    for cells in range(removed // 3 + 1):
        enough_cells = 3 * cells >= removed - removed // 4 or cells == removed // 3
        rest = removed - 3 * cells
        if enough_cells and rest <= (tokens - 3 * cells) // 2:
            return cells, rest
    raise ValueError("no such counts")


def cell_scores(tokens, grid, padding=None) -> list[float]:
    """Mean cosine over the ordered pairs of a cell; all-padding cells come first."""
    cosine = cosines(tokens)
    scores = []
    for cell in cells_of(grid):
        if padding is not None and all(padding[token] for token in cell):
            scores.append(BOTH_PADDING)
            continue
        pairs = [cosine[i][j] for i, j in itertools.permutations(cell, 2)]
        scores.append(sum(pairs) / len(pairs))
    return scores


def plan(tokens, grid, removed, stages, padding=None) -> Groups:
    tokens = np.asarray(tokens, np.float64)
    cells = cells_of(grid)
    num_cells, matched = counts(len(tokens), removed, stages)
    order = ranked(cell_scores(tokens, grid, padding), largest_first=True)
    # the sequence after the first stage: merged cells, then the tokens of the others, cell by cell
    sequence = [(cells[c][-1], tuple(cells[c])) for c in order[:num_cells]]
    sequence += [(token, (token,)) for c in order[num_cells:] for token in cells[c]]
    features = np.array([tokens[list(members)].mean(0) for _, members in sequence])
    is_padding = None if padding is None else [padding[anchor] for anchor, _ in sequence]
    similarity = cosines(features, is_padding)
    sources, destinations = range(0, len(sequence), 2), range(1, len(sequence), 2)
    edges = [most_similar(similarity, source, destinations) for source in sources]
    by_score = ranked([score for score, _ in edges], largest_first=True)[:matched]
    partner = {sources[i]: edges[i][1] for i in by_score}
    anchors = [anchor for i, (anchor, _) in enumerate(sequence) if i not in partner]
    joins = {}
    for i, (anchor, members) in enumerate(sequence):
        goal = sequence[partner[i]][0] if i in partner else anchor
        joins.update({token: goal for token in members if token != goal})
    return make_groups(anchors, joins)
