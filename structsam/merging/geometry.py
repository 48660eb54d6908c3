"""Where windows and padding lie: index tables that follow from shapes, before anything is computed.

SAM pads the token grid with zeros after the norm, so that windows fill it. Padding takes part in
attention as keys and values, the biases of their projection; what it would receive is dropped.
Where a method puts padding into the first slots of a map, and their number follows from the
geometry, linear layers run on the other slots alone: the same function on fewer rows.

Letters: B images, W windows of an image (1 for the whole grid), H' W' token grid of the image, B'
maps, H W token grid and N = H*W tokens of one map, M slots of a map, S slots of all maps that are
not known to be padding, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor

from structsam.plans.constants import constant

#: A distance between windows of one image stays below this, in tokens.
_AREA_BEFORE_DISTANCE = 1000.0


class WindowMaps:
    """Cuts images [B, H', W', C] into maps [B*W, N, C], and puts maps together again.

    Args:
        batch, height, width: B, H', W'.
        window: side of a window; 0 for one map of the whole grid.
        device: where the tables lie.
    """

    def __init__(
        self, batch: int, height: int, width: int, window: int, device: torch.device
    ) -> None:
        self.batch, self.image, self.window = batch, (height, width), window
        self.grid = (window, window) if window else self.image
        token = torch.arange(batch * height * width, device=device)
        #: [B*W, N] int64, the token of all images at every place of the maps; 0 on padding.
        self.token_of_place = self.cut(token.reshape(batch, height, width, 1)).squeeze(-1)
        #: [B*W, N] bool, which places are padding; None when none is.
        self.padding: Tensor | None = None
        if window and (height % window or width % window):
            real = self.cut(torch.ones(batch, height, width, 1, device=device))
            self.padding = real.squeeze(-1) == 0

    @classmethod
    def of(cls, x: Tensor, window: int) -> WindowMaps:
        """Return the maps of images shaped as `x` [B, H', W', C]."""
        return constant(cls, *x.shape[:3], window, like=x)

    def cut(self, x: Tensor) -> Tensor:
        """Cut into windows, zeros on padding; window 0 is one map."""
        return (window_partition(x, self.window)[0] if self.window else x).flatten(1, 2)

    def put_back(self, maps: Tensor) -> Tensor:
        """Undo `cut`; padding is dropped."""
        x = maps.reshape(-1, *self.grid, maps.shape[-1])
        if not self.window:
            return x
        padded = tuple(side + -side % self.window for side in self.image)
        return window_unpartition(x, self.window, padded, self.image)


class UnpaddedSlots:
    """All slots but the first `padding[b]` of every map b, as rows of one table.

    Rows are ordered by the parts of a map's slots: the first part of all maps, then the second.

    Args:
        padding: of B' maps, how many slots at the start hold padding.
        parts: how many slots every part has; M in all.
        device: where the tables lie.
    """

    def __init__(self, padding: Sequence[int], parts: Sequence[int], device: torch.device) -> None:
        num_slots = sum(parts)
        self.shape = len(padding), num_slots
        total = sum(num_slots - count for count in padding)
        self._slots_of_parts: list[Tensor] = []  # among the slots of this part of all maps
        slot_of_row, row_of_slot, start, row = [], [], 0, 0
        # of sizes that are known, so that torch.compile and the export see constants
        for size in parts:
            out = [min(max(count - start, 0), size) for count in padding]
            of_part = [torch.arange(size * b + n, size * (b + 1)) for b, n in enumerate(out)]
            of_map = [slots + b * (num_slots - size) + start for b, slots in enumerate(of_part)]
            first = list(accumulate((size - n for n in out), initial=row))
            place = torch.arange(size) - torch.tensor(out)[:, None]
            # padding has the row after the last
            row_of_slot.append(
                torch.where(place >= 0, place + torch.tensor(first[:-1])[:, None], total)
            )
            self._slots_of_parts.append(torch.cat(of_part).to(device))
            slot_of_row += of_map
            start, row = start + size, first[-1]
        self._slot_of_row = torch.cat(slot_of_row).to(device)  # [S]
        self._row_of_slot = torch.cat(row_of_slot, 1).flatten().to(device)  # [B'*M]

    def take(self, slots: Tensor) -> Tensor:
        """Return the rows of slots [B', M, C]: [S, C]."""
        return slots.flatten(0, 1).index_select(0, self._slot_of_row)

    def take_parts(self, *parts: Tensor) -> list[Tensor]:
        """Return the rows of every part [B', size, ...] by itself; together they are the S rows."""
        return [
            part.flatten(0, 1).index_select(0, slots)
            for part, slots in zip(parts, self._slots_of_parts, strict=True)
        ]

    def spread(self, rows: Tensor) -> Tensor:
        """Put rows [S + 1, C] into their slots, the last one into padding: [B', M, C]."""
        return rows.index_select(0, self._row_of_slot).reshape(*self.shape, rows.shape[-1])

    def row_of(self, slot: Tensor) -> Tensor:
        """Return the row of every slot 0..B'*M-1, S for padding."""
        return self._row_of_slot.index_select(0, slot.flatten()).reshape(slot.shape)


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
