"""Is a plan right up to rounding? Every decision of it against float64, from methods.md.

Where two candidates are closer than `EPS` either may have been chosen; everything that follows
from a choice is checked against that choice. So plans of different runtimes can be certified that
differ where float32 sums in another order must differ, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.structsam.naive_algm import cell_scores
from tests.structsam.naive_bipartite import padding_first
from tests.structsam.naive_plan import cosines
from tests.structsam.naive_structsam import cells_of, centre_is_inside

EPS = 1e-5


class Map:
    """One map in float64 with what methods compute of it."""

    def __init__(self, method: Any, tokens, energy=None, padding=None, box=None) -> None:
        self.method, self.grid = method, method.grid
        self.tokens = np.asarray(tokens, np.float64)
        self.energy = None if energy is None else np.asarray(energy, np.float64)
        self.padding = None if padding is None else np.asarray(padding, bool)
        self.similarity = cosines(self.tokens, self.padding)
        self.box = box

    def pitome_energy(self) -> np.ndarray:
        t = self.similarity - self.method.margin_here
        elu = np.where(t > 0, t, self.method.alpha * np.expm1(np.minimum(t, 0)))
        return elu.mean(1)

    def late(self, s: int) -> np.ndarray:
        cells = cells_of(self.grid, s)
        if self.box is None:
            return np.zeros(len(cells), bool)
        return np.array([centre_is_inside(cell, self.grid, self.box) for cell in cells])


def certify(here: Map, slot, anchor, size) -> None:
    """Check one map's plan, whatever its method.

    Raises:
        AssertionError: a choice is worse than another by more than EPS.
    """
    slot, anchor, size = (np.asarray(table) for table in (slot, anchor, size))
    assert (slot[anchor] == np.arange(len(anchor))).all()
    assert (size == np.bincount(slot, minlength=len(anchor))).all()
    method, name = here.method, here.method.name
    if name in ("tome", "tomesd", "vidtome"):
        expected = method.destination_positions()
        assert (anchor[len(anchor) - len(expected) :] == expected).all()
        _best_edges(here, slot, anchor, len(expected))
    elif name == "gradtome" and method.variant == "grid":
        _destination_of_cells(here, anchor, here.energy)
        _best_edges(here, slot, anchor, len(slot) // 4)
    elif name == "pitome" and method.variant == "stride":
        keys = padding_first(-here.pitome_energy(), here.padding)
        _destination_of_cells(here, anchor, keys)
        _best_edges(here, slot, anchor, len(slot) // 4)
    elif name == "gradtome":
        _order(here, slot, anchor, padding_first(here.energy, here.padding), 2)
    elif name == "pitome":
        keys = padding_first(-here.pitome_energy(), here.padding)
        _order(here, slot, anchor, keys, 2)
    elif name == "structsam" and method.variant == "no_cell":
        _order(here, slot, anchor, padding_first(here.energy, here.padding), 4)
    elif name == "structsam":
        _structsam(here, slot, anchor)
    elif name == "algm" and method.stages == "local":
        scores = -np.array(cell_scores(here.tokens, here.grid, here.padding))
        _cells(here, slot, anchor, scores, np.zeros(len(scores), bool), 2)
        cells = np.array(cells_of(here.grid))
        assert np.isin(anchor[: method.num_merged_cells], cells[:, -1]).all()
    else:
        raise NotImplementedError(f"no certificate for {method}")


def _tiered(keys, late) -> np.ndarray:
    """Finite keys of the same order, in which everything late comes last."""
    finite = keys[np.isfinite(keys)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    keys = np.where(np.isfinite(keys), keys, low - 1)
    return np.where(late, keys + (high - low) + 2, keys)


def _ascending(keys) -> bool:
    return bool((keys[:-1] <= keys[1:] + EPS * np.maximum(1, abs(keys[1:]))).all())


def _matches(here: Map, slot, anchor, destinations) -> np.ndarray:
    """Whoever joined a slot joined (about) its most similar destination; returns them."""
    joined = np.setdiff1d(np.arange(len(slot)), anchor)
    partner = anchor[slot[joined]]
    assert np.isin(partner, destinations).all()
    best = here.similarity[np.ix_(joined, destinations)].max(1)
    assert (here.similarity[joined, partner] >= best - EPS).all(), "a better destination exists"
    return joined


def _best_edges(here: Map, slot, anchor, count: int) -> None:
    kept, destinations = anchor[: len(anchor) - count], anchor[len(anchor) - count :]
    joined = _matches(here, slot, anchor, destinations)
    best = here.similarity[:, destinations].max(1)
    assert _ascending(-best[kept]), "kept sources, most similar first"
    if len(joined) and len(kept):
        assert best[joined].min() >= best[kept].max() - EPS, "a better source was kept"


def _destination_of_cells(here: Map, anchor, keys) -> None:
    cells = np.array(cells_of(here.grid))
    chosen = anchor[len(anchor) - len(cells) :]
    assert (cells == chosen[:, None]).any(1).all(), "one of every cell, cell by cell"
    least = keys[cells].min(1)
    finite = np.isfinite(least)
    assert (keys[chosen] <= least + EPS * np.maximum(1, np.where(finite, abs(least), 1))).all()


def _order(here: Map, slot, anchor, keys, group: int) -> None:
    """One of every `group` of the first tokens in order of `keys` is a destination.

    PiToMe and GradToMe: the second of two. StructSAM without cells: the first of four.
    """
    removed = here.method.num_removed
    count = removed if group == 2 else removed // 3
    keys = _tiered(keys, here.late(1))
    kept, destinations = anchor[: len(anchor) - count], anchor[len(anchor) - count :]
    joined = _matches(here, slot, anchor, destinations)
    others = joined[np.argsort(keys[joined], kind="stable")].reshape(count, group - 1)
    if group == 2:
        taken = np.concatenate([others, destinations[:, None]], 1).ravel()
    else:
        taken = np.concatenate([destinations[:, None], others], 1).ravel()
    assert _ascending(keys[np.concatenate([taken, kept])]), "not the order of the scores"


def _structsam(here: Map, slot, anchor) -> None:
    method, s = here.method, here.method.cell_size
    cells = np.array(cells_of(here.grid, s))
    energy = here.energy[cells]
    keys = energy.max(1) if method.flatness == "max" else energy.mean(1)
    if method.cells == "random":
        keys = method._random_cells.astype(float)
    late = here.late(s)
    if here.padding is not None:  # before all others, also where the box reaches over it
        in_padding = here.padding[cells].all(1)
        keys, late = np.where(in_padding, -1, keys), late & ~in_padding
    _cells(here, slot, anchor, keys, late, s)
    chosen = anchor[: method.num_merged_cells]
    of_cell = {int(token): c for c, cell in enumerate(cells) for token in cell}
    own = np.array([of_cell[int(token)] for token in chosen], int)
    if method.destination == "random":
        first = method._random_tokens.argmin(-1)
        assert (cells[own, first[own]] == chosen).all()
    else:
        sign = 1 if method.destination == "min" else -1
        best = (sign * energy[own]).min(1)
        assert (sign * here.energy[chosen] <= best + EPS * np.maximum(1, abs(best))).all()


def _cells(here: Map, slot, anchor, keys, late, s: int) -> None:
    """Merged cells, then the tokens of the others, in order of `keys`."""
    cells, merged = np.array(cells_of(here.grid, s)), here.method.num_merged_cells
    of_token = np.zeros(len(slot), int)
    of_token[cells] = np.arange(len(cells))[:, None]
    order = np.concatenate([of_token[anchor[:merged]], of_token[anchor[merged :: s * s]]])
    assert sorted(order) == list(range(len(cells)))
    assert (slot[cells[order[:merged]]] == np.arange(merged)[:, None]).all()
    assert (anchor[merged:] == cells[order[merged:]].ravel()).all()
    assert _ascending(_tiered(keys, late)[order]), "not the order of the scores"
