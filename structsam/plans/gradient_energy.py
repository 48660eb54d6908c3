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

    `G = sqrt(sum_c gx^2 + gy^2)` with `gx = [1 2 1]^T [-1 0 1]` and `gy` its transpose. Both come
    from 2x2 sums t: with the diagonal differences e = t11 - t00 and f = t01 - t10 around a token,
    gx = e + f and gy = e - f, so G^2 = 2 sum_c e^2 + f^2, in two thirds of the passes.

    Args:
        feature_map: [B, H, W, C], any floating type.

    Returns:
        [B, H, W] float32, at least 0.
    """
    padded = _replicate(_replicate(feature_map.float(), dim=1), dim=2)  # [B, H + 2, W + 2, C]
    pairs = padded[:, :-1] + padded[:, 1:]
    sums = pairs[:, :, :-1] + pairs[:, :, 1:]  # [B, H + 1, W + 1, C]
    e = sums[:, 1:, 1:] - sums[:, :-1, :-1]
    f = sums[:, :-1, 1:] - sums[:, 1:, :-1]
    return (2.0 * (e * e + f * f).sum(-1)).sqrt()


def central_energy(feature_map: Tensor) -> Tensor:
    """Return the magnitude of central differences of every token (StructSAM, Table 4).

    Args:
        feature_map: [B, H, W, C], any floating type.

    Returns:
        [B, H, W] float32, at least 0.
    """
    tokens = feature_map.float()
    across, down = _replicate(tokens, dim=2), _replicate(tokens, dim=1)
    gx = 0.5 * (across[:, :, 2:] - across[:, :, :-2])
    gy = 0.5 * (down[:, 2:] - down[:, :-2])
    return (gx * gx + gy * gy).sum(-1).sqrt()


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sobel": sobel_energy,
    "central": central_energy,
}


def _replicate(tokens: Tensor, dim: int) -> Tensor:
    """Repeat the first and the last token along `dim` once."""
    size = tokens.shape[dim]
    return torch.cat([tokens.narrow(dim, 0, 1), tokens, tokens.narrow(dim, size - 1, 1)], dim)
