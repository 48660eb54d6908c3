"""Cutting images into windows and putting them together again, and a prompt box seen from windows.

Letters: B images, W windows of an image (1 for the whole grid), H' W' token grid of the image, N
tokens of one map, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor

#: A distance between windows of one image stays below this, in tokens.
_AREA_BEFORE_DISTANCE = 1000.0


class WindowMaps:
    """Cuts images [B, H', W', C] into maps [B*W, N, C], and puts maps together again."""

    def __init__(self, shape: Sequence[int], window: int) -> None:
        self.batch, self.height, self.width = shape[:3]
        self.window = window
        self.grid = (window, window) if window else (self.height, self.width)

    def cut(self, x: Tensor) -> Tensor:
        """Cut into windows, zeros on padding; window 0 is one map."""
        return (window_partition(x, self.window)[0] if self.window else x).flatten(1, 2)

    def put_back(self, maps: Tensor) -> Tensor:
        """Undo `cut`; padding is dropped."""
        x = maps.reshape(-1, *self.grid, maps.shape[-1])
        if not self.window:
            return x
        size = (self.height, self.width)
        padded = (self.height + -self.height % self.window, self.width + -self.width % self.window)
        return window_unpartition(x, self.window, padded, size)

    def padding(self, device: torch.device) -> Tensor | None:
        """Which tokens of every map are padding, [B*W, N] bool; None when there is none."""
        if not self.window or not (self.height % self.window or self.width % self.window):
            return None
        real = self.cut(torch.ones(1, self.height, self.width, 1, device=device))
        return (real.squeeze(-1) == 0).repeat(self.batch, 1)


def box_of_windows(box: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Move a box [B, 4] in tokens of the image into every window: [B*W, 4]."""
    y = torch.arange(0, image[0], grid[0], device=box.device)
    x = torch.arange(0, image[1], grid[1], device=box.device)
    left, top = x.repeat(len(y)), y.repeat_interleave(len(x))
    origin = torch.stack([left, top, left, top], -1)  # [W, 4]
    return (box.unsqueeze(1) - origin).flatten(0, 1)


def closeness(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Score every map by how much of it the box [B*W, 4] covers, then by nearness: [B*W]."""
    limit = torch.tensor([grid[1], grid[0], grid[1], grid[0]], device=box.device)
    inside = torch.minimum(box.clamp(min=0), limit)
    sides = (inside[:, 2:] - inside[:, :2]).clamp(min=0)  # of the part within the map
    centre = (box[:, :2] + box[:, 2:]) / 2 - limit[:2] / 2
    # the covered area counts tokens; the distance only decides between maps covered alike
    return _AREA_BEFORE_DISTANCE * sides.prod(1) - (centre * centre).sum(1).sqrt()
