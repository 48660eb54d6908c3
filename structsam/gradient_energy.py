"""Gradient energy of a token map: how much the features change around every token.

Both operators replicate the edge token at the border and run in float32 whatever the input is (a
sum of 768 squares overflows float16). They are sums of shifted differences, so a constant map has
exactly zero energy, borders included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sobel_energy(feature_map: Tensor) -> Tensor:
    """Return the Sobel gradient magnitude of every token (StructSAM, section 3.3).

    `G = sqrt(sum_c gx^2 + gy^2)` with `gx = [1 2 1]^T [-1 0 1]` and `gy` its transpose.

    Args:
        feature_map: [B, H, W, C], any floating type.

    Returns:
        [B, H, W] float32, at least 0.
    """
    rows, columns = _shifts(feature_map.float(), dim=1), _shifts(feature_map.float(), dim=2)
    smooth_y = rows[0] + 2.0 * rows[1] + rows[2]
    smooth_x = columns[0] + 2.0 * columns[1] + columns[2]
    return _magnitude(_difference(smooth_y, dim=2), _difference(smooth_x, dim=1))


def central_energy(feature_map: Tensor) -> Tensor:
    """Return the magnitude of central differences of every token (StructSAM, Table 4).

    Args:
        feature_map: [B, H, W, C], any floating type.

    Returns:
        [B, H, W] float32, at least 0.
    """
    tokens = feature_map.float()
    return _magnitude(0.5 * _difference(tokens, dim=2), 0.5 * _difference(tokens, dim=1))


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sobel": sobel_energy,
    "central": central_energy,
}


def _shifts(tokens: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the previous, the same and the next neighbour along `dim`; edges are replicated."""
    size = tokens.shape[dim]
    first, last = tokens.narrow(dim, 0, 1), tokens.narrow(dim, size - 1, 1)
    previous = torch.cat([first, tokens.narrow(dim, 0, size - 1)], dim)
    following = torch.cat([tokens.narrow(dim, 1, size - 1), last], dim)
    return previous, tokens, following


def _difference(tokens: Tensor, dim: int) -> Tensor:
    previous, _, following = _shifts(tokens, dim)
    return following - previous


def _magnitude(gx: Tensor, gy: Tensor) -> Tensor:
    return (gx * gx + gy * gy).sum(-1).sqrt()
