"""Token maps for the tests of merging methods, and SAM's four kinds of padded windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tests.structsam import naive_structsam as naive

#: A map of 22x22 tokens makes four windows of 14: whole, right edge, bottom edge and corner.
EDGE_MAP, WINDOW = (22, 22), 14
WINDOW_KINDS = ("whole", "right-edge", "bottom-edge", "corner")


class Windows(NamedTuple):
    """What a windowed layer passes to a method, [4, 196] of each, in the order of WINDOW_KINDS."""

    tokens: torch.Tensor
    energy: torch.Tensor | None
    padding: torch.Tensor


def random_tokens(batch, tokens, channels=8, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, channels, generator=generator)


def sign_tokens(batch, tokens, channels=1, seed=0) -> torch.Tensor:
    """One channel of small integers: every cosine is exactly -1, 0 or 1, so most scores tie.

    Means, sums and largest magnitudes of such tokens keep exact cosines, because sqrt(x*x) = |x|
    in binary arithmetic.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (batch, tokens, 1), generator=generator).float()


def exact_tokens(batch, tokens, channels=12, seed=0) -> torch.Tensor:
    """Vectors of length 1, 2 or 4 with one or four entries: every cosine is a multiple of 1/4.

    Sums of products are exact in any order, so equal scores are equal on every runtime.
    """
    random = np.random.default_rng(seed)
    found = np.zeros((batch * tokens, channels), np.float32)
    for row in found:
        kind = random.integers(0, 8)
        if kind == 0:
            continue  # a real token of length zero
        count = 1 if kind < 3 else 4
        where = random.choice(channels, count, replace=False)
        row[where] = random.choice([-1.0, 1.0], count) * 2.0 ** random.integers(0, 2)
    return torch.from_numpy(found.reshape(batch, tokens, channels))


def smooth_tokens(batch, tokens, channels=8, seed=0) -> torch.Tensor:
    """Neighbours resemble each other, as in a photo."""
    side = int(tokens**0.5)
    y, x = np.divmod(np.arange(tokens), side)
    random = np.random.default_rng(seed)
    waves = random.normal(size=(4, batch, 1, channels))
    phase = (waves[0] * y[:, None] + waves[1] * x[:, None]) / 3 + 3 * waves[2]
    return torch.from_numpy(
        waves[3] + np.sin(phase) + 0.1 * random.normal(size=phase.shape)
    ).float()


MAPS = {
    "random": random_tokens,
    "sign": sign_tokens,
    "exact": exact_tokens,
    "smooth": smooth_tokens,
}

DEGENERATE = {
    "zero": lambda batch, tokens: torch.zeros(batch, tokens, 3),
    "constant": lambda batch, tokens: torch.tensor([1.5, -0.25, 3.0]).expand(batch, tokens, 3),
    "duplicates": lambda batch, tokens: random_tokens(batch, 4).repeat(1, tokens // 4, 1),
    "one-spike": lambda batch, tokens: torch.eye(tokens)[:, 5:6].expand(batch, tokens, 1),
    "tiny": lambda batch, tokens: 1e-30 * random_tokens(batch, tokens),
    "huge": lambda batch, tokens: 1e8 * random_tokens(batch, tokens),
}


def cut_windows(method, image) -> Windows:
    """Cut a [H, W, C] map into windows of 14 with zeros beyond it, energies of the whole map."""

    def cut(values) -> torch.Tensor:
        windows = np.stack(naive.partition(values, WINDOW))
        return torch.from_numpy(windows.reshape(len(windows), WINDOW**2, *windows.shape[3:]))

    energy = method.token_energy(image.unsqueeze(0))
    return Windows(
        tokens=cut(image.numpy()).float(),
        energy=None if energy is None else cut(energy[0].numpy()).float(),
        padding=cut(np.ones(image.shape[:2])) == 0,
    )


def edge_windows(method, kind="random", seed=0, channels=8) -> Windows:
    height, width = EDGE_MAP
    image = MAPS[kind](1, height * width, channels=channels, seed=seed)
    return cut_windows(method, image.reshape(height, width, -1))
