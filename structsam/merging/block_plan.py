"""How one block merges its maps: plans, slots straight from the image, and one gather back.

Letters: B images, W windows of an image (1 where a block attends over the whole grid), H' W' token
grid of the image, B' maps of a group, N tokens and M slots of one map, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from structsam.merging.attention import Positions
from structsam.merging.geometry import UnpaddedSlots, WindowMaps, box_of_windows, closeness
from structsam.merging.window_group import WindowGroup
from structsam.methods.base import MergeMethod
from structsam.plans.constants import constant
from structsam.plans.plan import MergePlan
from structsam.plans.ranking import invert_ranks, rank_descending
from structsam.plans.slot_features import CellMean, gather_rows


@dataclass(frozen=True)
class MapGroup:
    """Maps that merge equally much.

    Args:
        is_padding: [B', M] bool, slots of padding; None when there is none.
        windows: [B'] which maps of all these are; None for all of them.
        of_image: slots straight from the image's tokens [B*H'*W', C], without cutting windows;
            None where windows are cut.
        unpadded: the slots that `of_image` gives and linear layers run on; None for all.
    """

    plan: MergePlan
    positions: Positions
    is_padding: Tensor | None
    windows: Tensor | None
    of_image: CellMean | None = None
    unpadded: UnpaddedSlots | None = None


@dataclass
class BlockMerging:
    """The plans of one block, and how to compute on slots instead of tokens.

    Args:
        place: [B*W] of every map among the groups' maps one after the other, image by image; None
            for a single group.
        token_energy: [B, H', W'] by which methods ranked the image's tokens, if they score these.
    """

    maps: WindowMaps
    groups: list[MapGroup]
    place: Tensor | None
    token_energy: Tensor | None = None

    def __post_init__(self) -> None:
        self._row_of_token = self._find_rows()

    def around(self, x: Tensor, run: Callable[[Tensor, MapGroup], Tensor]) -> Tensor:
        """Merge [B, H', W', C], run on the slots of every group, unmerge: [B, H', W', C]."""
        merged = zip(self._merge(x), self.groups, strict=True)
        return self._unmerge([run(slots, group) for slots, group in merged])

    def _merge(self, x: Tensor) -> list[Tensor]:
        """Return every group's slots [B', M, C] of [B, H', W', C], or rows [S, C] of `unpadded`."""
        if self.groups[0].of_image is not None:
            return [self.groups[0].of_image(x.flatten(0, 2))]
        tokens = self.maps.cut(x)
        merged = []
        for group in self.groups:
            own = tokens if group.windows is None else tokens.index_select(0, group.windows)
            merged.append(group.plan.merge(own))
        return merged

    def _unmerge(self, slots: list[Tensor]) -> Tensor:
        """Give every token its slot's row: what `_merge` returned -> [B, H', W', C]."""
        table = torch.cat([found.flatten(0, -2) for found in slots]) if slots[1:] else slots[0]
        rows = self._row_of_token.reshape(1, -1)
        picked = gather_rows(table.reshape(1, -1, table.shape[-1]), rows)
        return picked.reshape(*self._row_of_token.shape, -1)

    def _find_rows(self) -> Tensor:
        """The row of every token of the images among all groups' rows, [B, H', W'] int64.

        Putting windows back is done to these indices, not to features: unmerging is one gather.
        """
        start, rows = 0, []
        for group in self.groups:
            slot = group.plan.slot_of_token
            maps, num_slots = slot.shape[0], group.plan.num_slots
            slot = slot + torch.arange(0, maps * num_slots, num_slots, device=slot.device)[:, None]
            rows.append(start + (slot if group.unpadded is None else group.unpadded.row_of(slot)))
            start += maps * num_slots  # several groups have all their slots
        # padding is dropped here, and with it rows that do not exist
        return self.maps.put_back(self._in_window_order(rows).unsqueeze(-1)).squeeze(-1)

    @property
    def plan(self) -> MergePlan:
        """The plan of all maps; that of several groups only shows which tokens share a slot."""
        if self.place is None:
            return self.groups[0].plan
        return _joined([group.plan for group in self.groups], self._in_window_order)

    @property
    def energy(self) -> Tensor | None:
        """By what tokens were ranked, [B, H', W'] float32; None where nothing scored them."""
        if self.token_energy is not None or self.plan.energy is None:
            return self.token_energy
        return self.maps.put_back(self.plan.energy.unsqueeze(-1)).squeeze(-1)

    def _in_window_order(self, parts: list[Tensor]) -> Tensor:
        if self.place is None:
            return parts[0]
        rows = [part.reshape(self.maps.batch, -1, *part.shape[1:]) for part in parts]
        return torch.cat(rows, 1).flatten(0, 1).index_select(0, self.place)


def plan_block(
    tiers: Sequence[WindowGroup],
    maps: WindowMaps,
    metric: Tensor,
    energy: Tensor | None,
    box: Tensor | None,
    proportional: bool,
) -> BlockMerging:
    """Plan the maps of one block, tier by tier.

    Args:
        tiers: merging of the maps; several need a box, and order the windows by it.
        metric: [B, H', W', d] what methods score.
        energy: [B, H', W'] energies of the tokens, if the method has any.
        box: [B, 4] prompt boxes in tokens of the image.
        proportional: add the log of a slot's size to the logits of its key.
    """
    scored = _Scored(
        metric=maps.cut(metric),
        energy=None if energy is None else maps.cut(energy.unsqueeze(-1)).squeeze(-1),
        padding=maps.padding,
        box=None if box is None else box_of_windows(box, maps.image, maps.grid),
    )
    if len(tiers) == 1:
        (tier,) = tiers
        group = _group(tier.method, scored, None, proportional)
        return BlockMerging(maps, [_read_from_image(group, tier.method, maps)], None, energy)
    assert box is not None, "several tiers need a prompt box"
    windows, place = windows_of_tiers(tiers, maps, box)
    groups = [
        _group(tier.method, scored.pick(own), own, proportional)
        for tier, own in zip(tiers, windows, strict=True)
    ]
    return BlockMerging(maps, groups, place, energy)


def windows_of_tiers(
    tiers: Sequence[WindowGroup], maps: WindowMaps, box: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Give the windows that a box covers most to the first tier, and so on.

    Args:
        box: [B, 4] in tokens of the image.

    Returns:
        Every tier's maps among all maps [B*K], and `BlockMerging.place`.
    """
    score = closeness(box_of_windows(box, maps.image, maps.grid), maps.grid)
    rank = rank_descending(score.reshape(maps.batch, -1))  # [B, W]
    windows = rank.shape[1]
    first = windows * torch.arange(maps.batch, device=rank.device)[:, None]
    parts = (invert_ranks(rank) + first).split([tier.windows for tier in tiers], 1)
    return [part.flatten() for part in parts], (rank + first).flatten()


def _group(
    method: MergeMethod, scored: _Scored, windows: Tensor | None, proportional: bool
) -> MapGroup:
    plan = method.plan(scored.metric, scored.energy, scored.padding, scored.box)
    log_size = plan.size_of_slot.float().log() if proportional else None
    if plan.slot_grid:
        positions = Positions(plan.slot_grid, None, log_size)
    else:
        positions = Positions(plan.grid, plan.anchor_of_slot, log_size)
    is_padding = None
    if scored.padding is not None:
        is_padding = scored.padding.gather(1, plan.anchor_of_slot)
    return MapGroup(plan, positions, is_padding, windows)


@dataclass(frozen=True)
class _Scored:
    """What methods see of the maps: metric [B', N, d], energy and padding [B', N], box [B', 4]."""

    metric: Tensor
    energy: Tensor | None
    padding: Tensor | None
    box: Tensor | None

    def pick(self, windows: Tensor) -> _Scored:
        """Return only these windows [K] of all."""
        picked: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            picked[field.name] = None if value is None else value.index_select(0, windows)
        return _Scored(**picked)


def _read_from_image(group: MapGroup, method: MergeMethod, maps: WindowMaps) -> MapGroup:
    """Let the only group of a block take its slots from the image, where no padding is read."""
    features = group.plan.features
    if not maps.window or not isinstance(features, CellMean):
        return group
    padding = method.padding_slots_of_maps(maps.image)
    if group.is_padding is not None and not padding:
        return group  # slots may hold padding, which is zeros and nowhere in the image
    features = features.of_table(maps.token_of_place)
    if not padding:
        return replace(group, of_image=features)
    counts = tuple(padding * maps.batch)
    unpadded = constant(UnpaddedSlots, counts, features.parts, like=maps.token_of_place)
    rows = unpadded.take_parts(features.strips, features.kept_tokens)
    return replace(group, of_image=CellMean(features.cell, *rows), unpadded=unpadded)


def _joined(plans: list[MergePlan], in_window_order: Callable[[list[Tensor]], Tensor]) -> MergePlan:
    """Make one plan of the tiers' plans, to look at; slots that a tier has not are filled with 0.

    It cannot merge: its maps keep different numbers of tokens.
    """
    slots = max(plan.num_slots for plan in plans)

    def whole(name: str) -> Tensor:
        parts = [getattr(plan, name) for plan in plans]
        if name != "slot_of_token":
            parts = [F.pad(part, (0, slots - part.shape[1])) for part in parts]
        return in_window_order(parts)

    def refuse(tokens: Tensor) -> Tensor:
        raise TypeError("the joined plan of several tiers only shows which tokens share a slot")

    return MergePlan(
        grid=plans[0].grid,
        slot_of_token=whole("slot_of_token"),
        anchor_of_slot=whole("anchor_of_slot"),
        size_of_slot=whole("size_of_slot"),
        features=refuse,
    )
