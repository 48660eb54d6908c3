"""SAM's transformer block with merging inside.

Order inside a block: norm -> energy -> windows -> merge -> qkv -> attention -> output projection
-> unmerge and windows back, one gather -> residual at full resolution -> MLP. Projecting before
unmerging is the same function as after it, on fewer tokens. Placement `block` runs the MLP on the
slots of the same plan, too; `stage` merges the residual stream once for a run of blocks with one
window layout, runs them on the slots, and adds the difference to every token's own residual.
Linear layers leave out slots that are known to be padding (`real_slots.py`).

Letters: B images, W windows of an image (1 where a block attends over the whole grid), H' W' token
grid of the image, N tokens of one map, C = h*d channels of h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn

from structsam.errors import UserError
from structsam.merge_plan import MergePlan
from structsam.methods.base import MergeMethod
from structsam.ranking import invert_ranks, rank_descending
from structsam.real_slots import RealSlots, padding_slots_of_maps
from structsam.relative_attention import Positions, attend
from structsam.slot_features import CellMean, gather_rows

#: A distance between windows of one image stays below this, in tokens.
_AREA_BEFORE_DISTANCE = 1000.0


class PromptBox:
    """The box that prompt-aware blocks look at; one object is shared by all blocks of a model.

    Args:
        tokens: [B, 4] float32 x0, y0, x1, y1 in tokens of the image's grid; one row serves all
            images. None is the whole image.
    """

    tokens: Tensor | None = None

    def of(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the boxes [B, 4] of images [B, H', W', C].

        Raises:
            UserError: there are neither as many boxes as images, nor one.
        """
        batch, height, width = shape[:3]
        if self.tokens is None:
            whole = torch.tensor([[0, 0, width, height]], dtype=torch.float32, device=device)
            return whole.expand(batch, -1)
        if self.tokens.shape[0] not in (1, batch):
            raise UserError(f"{self.tokens.shape[0]} prompt boxes do not go with {batch} images")
        return self.tokens.to(device).expand(batch, -1)


@dataclass(frozen=True)
class Tier:
    """Windows that merge equally many tokens: `method` for each of `windows` windows an image."""

    method: MergeMethod
    windows: int


class _SharedPlan:
    """Carries a block's merging to the blocks that reuse it, within one call of the encoder."""

    def __init__(self) -> None:
        self.users = 0
        self._left = 0
        self._merging: _Merging | None = None

    def put(self, merging: _Merging) -> None:
        """Keep it for the users of this call; nothing is kept where there are none."""
        self._left, self._merging = self.users, merging if self.users else None

    def take(self) -> _Merging:
        """Return what was put; the last user frees it."""
        merging = self._merging
        assert merging is not None, "the block that plans runs first"
        self._left -= 1
        if not self._left:
            self._merging = None
        return merging


class MergedBlock(nn.Module):
    """A SAM block that merges tokens around its attention, its MLP, or a run of blocks.

    It shares the submodules of the block it replaces under the same names, so parameters, state
    dict keys and later `.half()` or `.to(device)` calls act on both.

    Args:
        block: the stock block, kept in `original`.
        tiers: merging for the maps of this block; several give the windows that the prompt box
            covers most to the first tier, and so on. None computes attention on all tokens.
        attention: key of `structsam.relative_attention.ATTENTIONS`.
        proportional: add the log of a slot's size to the logits of its key.
        prompt: where the prompt box is found; None when the model takes none.
        placement: one of `structsam.config.PLACEMENTS`.
    """

    def __init__(
        self,
        block: Block,
        tiers: Sequence[Tier],
        attention: str,
        proportional: bool = False,
        prompt: PromptBox | None = None,
        placement: str = "attention",
    ) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp
        self.window_size: int = block.window_size
        self.tiers = tuple(tiers)
        self.attention = attention
        self.proportional = proportional
        self.prompt = prompt
        self.placement = placement
        self._original = (block,)  # in tuples, so that they are not registered as submodules
        self._stage: tuple[MergedBlock, ...] = (self,)
        self._shared = _SharedPlan()
        self._takes = False  # whether `_shared` is filled by an earlier block
        self.on_plan: Callable[[MergePlan], None] | None = None
        self.train(block.training)

    @property
    def original(self) -> Block:
        """The stock block that this one replaces."""
        return self._original[0]

    @property
    def method(self) -> MergeMethod | None:
        """Merging of the first tier; None where nothing is merged."""
        return self.tiers[0].method if self.tiers else None

    @property
    def plans(self) -> bool:
        """Whether this block makes a plan: it merges, and no earlier block has planned for it."""
        return bool(self.tiers and self._stage and not self._takes)

    def run_stage(self, blocks: Sequence[MergedBlock]) -> None:
        """Let this block run all `blocks`, itself first, on its slots; the others then do nothing.

        They must share the window size and keep equally many tokens.
        """
        self._stage = tuple(blocks)
        for block in blocks[1:]:
            block._stage = ()

    def take_plans_of(self, planner: MergedBlock) -> None:
        """Merge as `planner` does, which must run before and have equally many maps and slots."""
        self._shared, self._takes = planner._shared, True
        self._shared.users += 1

    def forward(self, x: Tensor) -> Tensor:
        """Map a token grid [B, H', W', C] to one of the same shape."""
        if not self._stage:
            return x  # an earlier block of the stage has done this one's work
        if self._takes and self.placement == "stage":
            return x + self._shared.take().around(x, self._stage_on_slots)
        normed = self.norm1(x)
        if not self.tiers:
            whole = _WindowMaps(x.shape, self.window_size)
            attended = attend(self.attn, whole.cut(normed), Positions(whole.grid), self.attention)
            x = x + whole.put_back(attended)
            return x + self.mlp(self.norm2(x))
        if self._takes:
            merging = self._shared.take()
        else:
            merging = self._merging(normed)
            self._shared.put(merging)
            if self.on_plan:
                self.on_plan(merging.plan)
        if self.placement == "stage":
            return x + merging.around(x, self._stage_on_slots)
        x = x + merging.around(normed, self._attention_on_slots)
        if self.placement == "block":
            return x + merging.around(self.norm2(x), lambda rows, _: self.mlp(rows))
        return x + self.mlp(self.norm2(x))

    def metric_map(self, x: Tensor) -> Tensor:
        """Return what methods score: [B, H', W', C] -> the mean over the heads, float32, or x."""
        if self.method is None or self.method.metric == "all":
            return x
        return x.float().unflatten(-1, (self.attn.num_heads, -1)).mean(-2)

    def token_energy(self, x: Tensor) -> Tensor | None:
        """Return the energy [B, H', W'] of the normed tokens, None if the method has none."""
        return self.method.token_energy(self.metric_map(x)) if self.method else None

    def _attention_on_slots(self, rows: Tensor, group: _Group) -> Tensor:
        """Attention and output projection of normed slots."""
        return attend(self.attn, rows, group.positions, self.attention, group.real)

    def _stage_on_slots(self, rows: Tensor, group: _Group) -> Tensor:
        """What the blocks of the stage add to slots of the residual stream."""
        x = rows
        for block in self._stage:
            normed = block.norm1(x)
            if (
                group.real is None and group.is_padding is not None
            ):  # SAM pads with zeros after the norm, in every block
                # a product: ONNX Runtime's Where takes three times as long
                normed = normed * (~group.is_padding).unsqueeze(-1).to(normed.dtype)
            x = x + block._attention_on_slots(normed, group)
            x = x + block.mlp(block.norm2(x))
        return x - rows

    def _merging(self, normed: Tensor) -> _Merging:
        """Plan the maps of the normed image [B, H', W', C], tier by tier."""
        assert self.method is not None
        maps = _WindowMaps(normed.shape, self.window_size)
        batch, height, width, _ = normed.shape
        metric = self.metric_map(normed)
        energy = self.method.token_energy(metric)
        scored = _Scored(
            metric=maps.cut(metric.to(normed.dtype)),
            energy=None if energy is None else maps.cut(energy.unsqueeze(-1)).squeeze(-1),
            padding=maps.padding(normed.device),
            box=None,
        )
        if self.prompt is not None:
            box = self.prompt.of(normed.shape, normed.device)
            scored = replace(scored, box=_box_of_windows(box, (height, width), maps.grid))
        if len(self.tiers) == 1:
            group = self._group(self.method, scored, None)
            return _Merging(maps, [_read_from_image(group, self.method, maps)], None)
        assert scored.box is not None, "several tiers need a prompt box"
        windows = scored.metric.shape[0] // batch
        covered = _closeness(scored.box, maps.grid).reshape(batch, windows)
        rank = rank_descending(covered)  # [B, W]
        first = windows * torch.arange(batch, device=rank.device)[:, None]
        ranked = invert_ranks(rank) + first
        groups, start = [], 0
        for tier in self.tiers:
            chosen = ranked[:, start : start + tier.windows].flatten()
            groups.append(self._group(tier.method, scored.pick(chosen), chosen))
            start += tier.windows
        return _Merging(maps, groups, (rank + first).flatten())

    def _group(self, method: MergeMethod, scored: _Scored, windows: Tensor | None) -> _Group:
        plan = method.plan(scored.metric, scored.energy, scored.padding, scored.box)
        log_size = plan.size_of_slot.float().log() if self.proportional else None
        if plan.slot_grid:
            positions = Positions(plan.slot_grid, None, log_size)
        else:
            positions = Positions(plan.grid, plan.anchor_of_slot, log_size)
        is_padding = None
        if scored.padding is not None:
            is_padding = scored.padding.gather(1, plan.anchor_of_slot)
        return _Group(plan, positions, is_padding, windows)


@dataclass(frozen=True)
class _Group:
    """Maps that merge equally much.

    Args:
        is_padding: [B', M] bool, slots of padding; None when there is none.
        windows: [B'] which maps of all these are; None for all of them.
        of_image: slots straight from the image's tokens [B*H'*W', C], without cutting windows;
            None where windows are cut.
        real: the slots that `of_image` gives and linear layers run on; None for all.
    """

    plan: MergePlan
    positions: Positions
    is_padding: Tensor | None
    windows: Tensor | None
    of_image: CellMean | None = None
    real: RealSlots | None = None


def _read_from_image(group: _Group, method: MergeMethod, maps: _WindowMaps) -> _Group:
    """Let the only group of a block take its slots from the image, where no padding is read."""
    features = group.plan.features
    image = maps.height, maps.width
    if not maps.window or not isinstance(features, CellMean):
        return group
    padding = padding_slots_of_maps(method, image, maps.grid)
    if group.is_padding is not None and not padding:
        return group  # slots may hold padding, which is zeros and nowhere in the image
    device = group.plan.slot_of_token.device
    real = RealSlots(padding * maps.batch, features.parts, device) if padding else None
    tokens = torch.arange(maps.batch * maps.height * maps.width, device=device)
    place = maps.cut(tokens.reshape(maps.batch, *image, 1)).squeeze(-1)
    return replace(group, of_image=features.of_table(place, real), real=real)


@dataclass
class _Merging:
    """The plans of one block, and how to compute on slots instead of tokens.

    Args:
        place: [B*W] of every map among the groups' maps one after the other, image by image; None
            for a single group.
    """

    maps: _WindowMaps
    groups: list[_Group]
    place: Tensor | None

    def __post_init__(self) -> None:
        self._row_of_token = self._find_rows()

    def around(self, x: Tensor, run: Callable[[Tensor, _Group], Tensor]) -> Tensor:
        """Merge [B, H', W', C], run on the slots of every group, unmerge: [B, H', W', C]."""
        merged = zip(self._merge(x), self.groups, strict=True)
        return self._unmerge([run(slots, group) for slots, group in merged])

    def _merge(self, x: Tensor) -> list[Tensor]:
        """Return every group's slots [B', M, C] of [B, H', W', C], or the rows [S, C] of `real`."""
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
            rows.append(start + (slot if group.real is None else group.real.row_of(slot)))
            start += maps * num_slots  # several groups have all their slots
        # padding is dropped here, and with it rows that do not exist
        return self.maps.put_back(self._in_window_order(rows).unsqueeze(-1)).squeeze(-1)

    @property
    def plan(self) -> MergePlan:
        """The plan of all maps; that of several groups only shows which tokens share a slot."""
        if self.place is None:
            return self.groups[0].plan
        return _joined([group.plan for group in self.groups], self._in_window_order)

    def _in_window_order(self, parts: list[Tensor]) -> Tensor:
        if self.place is None:
            return parts[0]
        rows = [part.reshape(self.maps.batch, -1, *part.shape[1:]) for part in parts]
        return torch.cat(rows, 1).flatten(0, 1).index_select(0, self.place)


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


class _WindowMaps:
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


def _box_of_windows(box: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Move a box [B, 4] in tokens of the image into every window: [B*W, 4]."""
    y = torch.arange(0, image[0], grid[0], device=box.device)
    x = torch.arange(0, image[1], grid[1], device=box.device)
    left, top = x.repeat(len(y)), y.repeat_interleave(len(x))
    origin = torch.stack([left, top, left, top], -1)  # [W, 4]
    return (box.unsqueeze(1) - origin).flatten(0, 1)


def _closeness(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Score every map by how much of it the box [B*W, 4] covers, then by nearness: [B*W]."""
    limit = torch.tensor([grid[1], grid[0], grid[1], grid[0]], device=box.device)
    inside = torch.minimum(box.clamp(min=0), limit)
    sides = (inside[:, 2:] - inside[:, :2]).clamp(min=0)  # of the part within the map
    centre = (box[:, :2] + box[:, 2:]) / 2 - limit[:2] / 2
    # the covered area counts tokens; the distance only decides between maps covered alike
    return _AREA_BEFORE_DISTANCE * sides.prod(1) - (centre * centre).sum(1).sqrt()
