"""SAM's transformer block with merging inside.

Order inside a block: norm -> energy -> windows -> merge -> qkv -> attention -> output projection
-> unmerge -> windows back -> residual at full resolution -> MLP. Projecting before unmerging is
the same function as after it, on fewer tokens.

Letters: B images, W windows of an image (1 where a block attends over the whole grid), H' W' token
grid of the image, N tokens of one map, C = h*d channels of h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn

from structsam.merge_plan import MergePlan
from structsam.methods.base import MergeMethod
from structsam.ranking import invert_ranks, rank_descending
from structsam.relative_attention import Positions, attend


class PromptBox:
    """The box that prompt-aware blocks look at; one object is shared by all blocks of a model.

    Args:
        tokens: [B, 4] float32 x0, y0, x1, y1 in tokens of the image's grid; one row serves all
            images. The empty box at first merges as without a box.
    """

    def __init__(self) -> None:
        self.tokens = torch.zeros(1, 4)


@dataclass(frozen=True)
class Tier:
    """Windows that merge equally many tokens: `method` for each of `windows` windows an image."""

    method: MergeMethod
    windows: int


class MergedBlock(nn.Module):
    """A SAM block that merges tokens around its attention.

    It shares the submodules of the block it replaces under the same names, so parameters, state
    dict keys and later `.half()` or `.to(device)` calls act on both.

    Args:
        block: the stock block, kept in `original`.
        tiers: merging for the maps of this block; several give the windows that the prompt box
            covers most to the first tier, and so on. None computes attention on all tokens.
        attention: key of `structsam.relative_attention.ATTENTIONS`.
        proportional: add the log of a slot's size to the logits of its key.
        prompt: where the prompt box is found; None when the model takes none.
    """

    def __init__(
        self,
        block: Block,
        tiers: Sequence[Tier],
        attention: str,
        proportional: bool = False,
        prompt: PromptBox | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp
        self.window_size: int = block.window_size
        self.tiers = tuple(tiers)
        self.attention = attention
        self.proportional = proportional
        self.prompt = prompt
        self._original = (block,)  # in a tuple, so that it is not registered as a submodule
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

    def forward(self, x: Tensor) -> Tensor:
        """Map a token grid [B, H', W', C] to one of the same shape."""
        normed = self.norm1(x)
        x = x + self._attend(normed)
        return x + self.mlp(self.norm2(x))

    def metric_map(self, x: Tensor) -> Tensor:
        """Return what methods score: [B, H', W', C] -> the mean over the heads, float32, or x."""
        if self.method is None or self.method.metric == "all":
            return x
        return x.float().unflatten(-1, (self.attn.num_heads, -1)).mean(-2)

    def token_energy(self, x: Tensor) -> Tensor | None:
        """Return the energy [B, H', W'] of the normed tokens, None if the method has none."""
        return self.method.token_energy(self.metric_map(x)) if self.method else None

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        window = self.window_size
        grid = (window, window) if window else (height, width)
        if self.method is None:
            y = attend(self.attn, _windows(x, window), Positions(grid), self.attention)
        else:
            maps = self._maps(x, grid)
            if len(self.tiers) == 1:
                y, plan = self._merge_and_attend(self.method, maps)
            else:
                y, plan = self._in_tiers(maps, batch)
            if self.on_plan:
                self.on_plan(plan)
        y = y.reshape(-1, *grid, channels)
        if window:
            padded = (height + -height % window, width + -width % window)
            y = window_unpartition(y, window, padded, (height, width))
        return y

    def _maps(self, x: Tensor, grid: tuple[int, int]) -> _Maps:
        """Cut the image [B, H', W', C] and all that methods look at into windows."""
        batch, height, width, _ = x.shape
        window = self.window_size
        metric = self.metric_map(x)
        energy = self.method.token_energy(metric) if self.method else None
        scores = None if energy is None else _windows(energy.unsqueeze(-1), window).squeeze(-1)
        padding = None
        if window and (height % window or width % window):
            real = _windows(torch.ones(1, height, width, 1, device=x.device), window)
            padding = (real.squeeze(-1) == 0).repeat(batch, 1)
        box = self.prompt.tokens if self.prompt else None
        if box is not None:
            box = box.to(x.device).expand(batch, -1)
        return _Maps(
            tokens=_windows(x, window),
            metric=_windows(metric.to(x.dtype), window),
            energy=scores,
            padding=padding,
            box=None if box is None else _box_of_windows(box, (height, width), grid),
        )

    def _merge_and_attend(self, method: MergeMethod, maps: _Maps) -> tuple[Tensor, MergePlan]:
        """Return what attention adds to every token, [B*W, N, C], and the plan."""
        plan = method.plan(maps.metric, maps.energy, maps.padding, maps.box)
        log_size = plan.size_of_slot.float().log() if self.proportional else None
        if plan.slot_grid:
            positions = Positions(plan.slot_grid, None, log_size)
        else:
            positions = Positions(plan.grid, plan.anchor_of_slot, log_size)
        merged = attend(self.attn, plan.merge(maps.tokens), positions, self.attention)
        return plan.unmerge(merged), plan

    def _in_tiers(self, maps: _Maps, batch: int) -> tuple[Tensor, MergePlan]:
        """Give the windows that the box covers most to the first tier, and so on."""
        windows = maps.tokens.shape[0] // batch
        assert maps.box is not None, "several tiers need a prompt box"
        covered = _covered(maps.box, self.tiers[0].method.grid).reshape(batch, windows)
        rank = rank_descending(covered)  # [B, W]
        order = invert_ranks(rank)
        first = windows * torch.arange(batch, device=order.device)[:, None]
        place = (rank + first).flatten()  # of every window among the results, tier by tier
        results, plans, start = [], [], 0
        for tier in self.tiers:
            chosen = order[:, start : start + tier.windows] + first
            y, plan = self._merge_and_attend(tier.method, maps.pick(chosen.flatten()))
            results.append(y)
            plans.append(plan)
            start += tier.windows

        def in_window_order(parts: list[Tensor]) -> Tensor:
            rows = [p.reshape(batch, -1, *p.shape[1:]) for p in parts]
            return torch.cat(rows, 1).flatten(0, 1).index_select(0, place)

        return in_window_order(results), _joined(plans, in_window_order)


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
class _Maps:
    """The maps of a block, one per window: tokens [B*W, N, C] and what methods look at."""

    tokens: Tensor
    metric: Tensor
    energy: Tensor | None
    padding: Tensor | None
    box: Tensor | None

    def pick(self, windows: Tensor) -> _Maps:
        """Return only these windows [K] of all."""
        picked: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            picked[field.name] = None if value is None else value.index_select(0, windows)
        return _Maps(**picked)


def _windows(x: Tensor, window: int) -> Tensor:
    """Cut [B, H', W', C] into maps [B*W, N, C], zeros on padding; window 0 is one map."""
    return (window_partition(x, window)[0] if window else x).flatten(1, 2)


def _box_of_windows(box: Tensor, image: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Move a box [B, 4] in tokens of the image into every window: [B*W, 4]."""
    y = torch.arange(0, image[0], grid[0], device=box.device)
    x = torch.arange(0, image[1], grid[1], device=box.device)
    left, top = x.repeat(len(y)), y.repeat_interleave(len(x))
    origin = torch.stack([left, top, left, top], -1)  # [W, 4]
    return (box.unsqueeze(1) - origin).flatten(0, 1)


def _covered(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return how many tokens' area of every map the box [B*W, 4] covers: [B*W]."""
    limit = torch.tensor([grid[1], grid[0], grid[1], grid[0]], device=box.device)
    inside = torch.minimum(box.clamp(min=0), limit)
    return (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
