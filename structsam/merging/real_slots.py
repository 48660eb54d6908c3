"""Slots that are known to hold padding, before anything is computed.

SAM pads the token grid with zeros after the norm, so that windows fill it. Padding takes part in
attention as keys and values, the biases of their projection; what it would receive is dropped.
Where a method puts padding into the first slots of a map, and their number follows from the
geometry, linear layers run on the other slots alone: the same function on fewer rows.

Letters: B maps, M slots of a map, S slots of all maps that are not known to be padding, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class RealSlots:
    """Rows for all slots but the first `padding[b]` of every map b.

    Rows are ordered by the parts of a map's slots: the first part of all maps, then the second.

    Args:
        padding: of B maps, how many slots at the start hold padding.
        parts: how many slots every part has; M in all.
        device: where the indices lie.
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
        self._row_of_slot = torch.cat(row_of_slot, 1).flatten().to(device)  # [B*M]

    def take(self, slots: Tensor) -> Tensor:
        """Return the rows of slots [B, M, C]: [S, C]."""
        return slots.flatten(0, 1).index_select(0, self._slot_of_row)

    def take_parts(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of every part [B, size, ...] by itself; together they are the S rows."""
        return [
            part.flatten(0, 1).index_select(0, slots)
            for part, slots in zip(parts, self._slots_of_parts, strict=True)
        ]

    def spread(self, rows: Tensor) -> Tensor:
        """Put rows [S + 1, C] into their slots, the last one into padding: [B, M, C]."""
        return rows.index_select(0, self._row_of_slot).reshape(*self.shape, rows.shape[-1])

    def row_of(self, slot: Tensor) -> Tensor:
        """Return the row of every slot 0..B*M-1, S for padding."""
        return self._row_of_slot.index_select(0, slot.flatten()).reshape(slot.shape)
