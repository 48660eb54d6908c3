"""Metrics of one mask from their definitions, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def naive_counts(predicted, truth):
    pixels = [(bool(a), bool(b)) for a, b in zip(predicted.flat, truth.flat, strict=True)]
    return (
        sum(a and b for a, b in pixels),
        sum(a for a, _ in pixels),
        sum(b for _, b in pixels),
    )


def eroded(mask):
    """One erosion by a 3x3 square; what lies outside of the array is not looked at."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            found[y, x] = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()
    return found


def naive_boundary(mask, times):
    """As the paper's code has it: a border of one zero pixel, then erosion after erosion."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    padded[1:-1, 1:-1] = mask
    for _ in range(times):
        padded = eroded(padded)
    return mask & ~padded[1:-1, 1:-1]


def naive_surface(mask):
    points = []
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [
                0 <= v < mask.shape[0] and 0 <= u < mask.shape[1] and mask[v, u] for v, u in around
            ]
            if mask[y, x] and not all(inside):
                points.append((y, x))
    return points


def naive_nsd(predicted, truth, tolerance):
    first, second = naive_surface(predicted), naive_surface(truth)
    if not first or not second:
        return float(not first and not second)
    near = sum(min(math.dist(p, q) for q in second) <= tolerance for p in first)
    near += sum(min(math.dist(p, q) for p in first) <= tolerance for q in second)
    return near / (len(first) + len(second))
