"""StructSAM again, slowly: plain loops in float64, written from the paper and not from our code.

It is the second opinion of the tests. It uses numpy and the standard library only, so that a
mistake in the product cannot be repeated here by an import.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

SMOOTH = (1.0, 2.0, 1.0)
SLOPE = (-1.0, 0.0, 1.0)


class NaivePlan(NamedTuple):
    """Lists over tokens and over slots."""

    num_slots: int
    slot_of_token: list[int]
    anchor_of_slot: list[int]


def sobel_energy(feature_map) -> np.ndarray:
    """Sobel magnitude over channels of a [H, W, C] map, with replicated border: [H, W]."""
    tokens = np.asarray(feature_map, dtype=np.float64)
    height, width, channels = tokens.shape
    energy = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            gx, gy = np.zeros(channels), np.zeros(channels)
            for dy in range(3):
                for dx in range(3):
                    row = min(max(y + dy - 1, 0), height - 1)
                    column = min(max(x + dx - 1, 0), width - 1)
                    gx += SMOOTH[dy] * SLOPE[dx] * tokens[row, column]
                    gy += SLOPE[dy] * SMOOTH[dx] * tokens[row, column]
            energy[y, x] = math.sqrt(sum(gx * gx) + sum(gy * gy))
    return energy


def central_energy(feature_map) -> np.ndarray:
    """Magnitude of half the difference of the two neighbours, with replicated border: [H, W]."""
    tokens = np.asarray(feature_map, dtype=np.float64)
    height, width, _ = tokens.shape
    energy = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            gx = (tokens[y, min(x + 1, width - 1)] - tokens[y, max(x - 1, 0)]) / 2
            gy = (tokens[min(y + 1, height - 1), x] - tokens[max(y - 1, 0), x]) / 2
            energy[y, x] = math.sqrt(sum(gx * gx) + sum(gy * gy))
    return energy


def num_merged_cells(grid, rate) -> int:
    """Algorithm 1: ceil(r*H*W/3), in exact arithmetic on the rate as it is written."""
    return math.ceil(Fraction(str(rate)) * grid[0] * grid[1] / 3)


def num_slots(grid, rate) -> int:
    merged = num_merged_cells(grid, rate)
    return merged + (grid[0] * grid[1] // 4 - merged) * 4


def cells_of(grid, s=2) -> list[list[int]]:
    """The row-major tokens of every s x s cell; cells row-major as well."""
    height, width = grid
    cells = []
    for top in range(0, height, s):
        for left in range(0, width, s):
            cells.append([(top + y) * width + left + x for y in range(s) for x in range(s)])
    return cells


def centre_is_inside(cell, grid, box) -> bool:
    """Whether the middle of a cell lies in x0, y0, x1, y1 (token i covers i..i+1)."""
    y = (min(t // grid[1] for t in cell) + max(t // grid[1] for t in cell) + 1) / 2
    x = (min(t % grid[1] for t in cell) + max(t % grid[1] for t in cell) + 1) / 2
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def plan_cells(
    energy, grid, merged, s=2, flatness="max", destination="min", order=None, orders=None, box=None
) -> dict[int, tuple[int, ...]]:
    """Algorithm 1 with the choices of Table 4: members of every slot by its anchor.

    Args:
        merged: number of merged cells.
        destination: min or max energy of the cell; `orders` [cell][place] replaces it.
        order: rank of every cell, instead of its energy.
        box: cells whose centre is outside come first.
    """
    flat = [float(e) for e in np.asarray(energy, np.float64).ravel()]
    cells = cells_of(grid, s)

    def key(c):
        inside = box is not None and centre_is_inside(cells[c], grid, box)
        energies = [flat[token] for token in cells[c]]
        least = max(energies) if flatness == "max" else math.fsum(energies) / len(energies)
        return (inside, least if order is None else float(order[c]), c)

    groups = {}
    for place, c in enumerate(sorted(range(len(cells)), key=key)):
        if place >= merged:
            groups.update({token: (token,) for token in cells[c]})
            continue
        if orders is not None:
            anchor = cells[c][list(orders[c]).index(0)]
        elif destination == "min":
            anchor = min(cells[c], key=lambda t: (flat[t], t))
        else:
            anchor = min(cells[c], key=lambda t: (-flat[t], t))
        groups[anchor] = tuple(cells[c])
    return groups


def plan(energy, rate) -> NaivePlan:
    """Algorithm 1 on one map's [H, W] energy."""
    energy = np.asarray(energy, dtype=np.float64)
    flat = [float(e) for e in energy.ravel()]
    cells = cells_of(energy.shape)
    merged = num_merged_cells(energy.shape, rate)
    order = sorted(range(len(cells)), key=lambda c: (max(flat[t] for t in cells[c]), c))
    total = num_slots(energy.shape, rate)
    slot_of_token, anchor_of_slot = [-1] * len(flat), [-1] * total
    for rank, cell in enumerate(order):
        if rank < merged:
            for token in cells[cell]:
                slot_of_token[token] = rank
            anchor_of_slot[rank] = min(cells[cell], key=lambda t: (flat[t], t))
        else:
            for place, token in enumerate(cells[cell]):
                slot = merged + (rank - merged) * 4 + place
                slot_of_token[token] = slot
                anchor_of_slot[slot] = token
    return NaivePlan(total, slot_of_token, anchor_of_slot)


def merge(tokens, slot_of_token, slots) -> np.ndarray:
    """Mean of every slot's members: [N, C] -> [M, C]."""
    tokens = np.asarray(tokens, dtype=np.float64)
    merged = []
    for slot in range(slots):
        members = [tokens[i] for i, own in enumerate(slot_of_token) if own == slot]
        merged.append(sum(members) / len(members))
    return np.stack(merged)


def unmerge(merged, slot_of_token) -> np.ndarray:
    """Every token takes its slot's row: [M, C] -> [N, C]."""
    return np.stack([merged[slot] for slot in slot_of_token])


def partition(feature_map, window) -> list[np.ndarray]:
    """Cut [H, W, ...] into windows, row-major, zeros where the map ends."""
    feature_map = np.asarray(feature_map, dtype=np.float64)
    height, width = feature_map.shape[:2]
    windows = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            cut = np.zeros((window, window, *feature_map.shape[2:]))
            piece = feature_map[top : top + window, left : left + window]
            cut[: piece.shape[0], : piece.shape[1]] = piece
            windows.append(cut)
    return windows


def unpartition(windows, window, size) -> np.ndarray:
    """Put windows back together and drop what was padding."""
    height, width = size
    whole = np.zeros((height, width, *windows[0].shape[2:]))
    queue = iter(windows)
    for top in range(0, height, window):
        for left in range(0, width, window):
            rows, columns = min(window, height - top), min(window, width - left)
            whole[top : top + rows, left : left + columns] = next(queue)[:rows, :columns]
    return whole
