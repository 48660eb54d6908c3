"""PyTorch once more, with the slots that another runtime chose: were ties ranked otherwise, or not?

Rounding decides between cells of nearly equal energy, and one cell ranked otherwise moves all that
is computed after it. Where a backend's result and its slots differ from the reference, PyTorch
follows the backend's slots, block by block, and is asked in every block what it would have chosen
from the same input: a backend that computes the same then agrees in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from structsam.merging.block import MergedBlock
from structsam.merging.block_plan import windows_of_tiers
from structsam.merging.geometry import WindowMaps
from structsam.merging.window_group import WindowGroup
from structsam.plans.plan import MergePlan
from structsam.plans.slot_features import CellMean, InTurn, MatchedMean, OneToken, SlotMean
from structsam_export.bundle.manifest import PLAN_TENSORS
from structsam_export.graph.modules import EncoderModule
from structsam_export.parity.reference import Reference, prompt_grid, stock_masks

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.methods.base import MergeMethod
    from structsam_export.runtimes.base import Arrays


class CannotFollow(Exception):
    """The slots' features do not follow from the slots alone."""


class GivenSlotsMethod:
    """A merging method that gives the slots of another runtime instead of its own.

    Args:
        method: the method of the block.
        slot_of_token: [B, N] int64 of the maps that it is asked for.
        anchor_of_slot: [B, M] int64.
    """

    def __init__(self, method: MergeMethod, slot_of_token: Tensor, anchor_of_slot: Tensor) -> None:
        self._method, self._slots, self._anchors = method, slot_of_token, anchor_of_slot
        #: Share of tokens that the method itself would send to the same destination.
        self.same = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def padding_slots(self, real: tuple[int, int]) -> None:
        """Promise nothing: the slots are another's."""

    def plan(
        self,
        tokens: Tensor,
        energy: Tensor | None = None,
        padding: Tensor | None = None,
        box: Tensor | None = None,
    ) -> MergePlan:
        """Return the given slots, with the features that the method gives to its own."""
        own = self._method.plan(tokens, energy, padding, box)
        features: OneToken | SlotMean
        if isinstance(own.features, OneToken):
            features = OneToken(self._anchors)
        elif isinstance(own.features, (CellMean, MatchedMean, InTurn)):
            features = SlotMean(self._slots, self._anchors.shape[1])
        else:
            raise CannotFollow(f"slots of {self._method.name} are no means of their tokens")
        destination = self._anchors.gather(1, self._slots)
        self.same = float(
            (own.anchor_of_slot.gather(1, own.slot_of_token) == destination).float().mean()
        )
        size = torch.zeros_like(self._anchors)
        size.scatter_add_(1, self._slots, torch.ones_like(self._slots))
        return MergePlan(own.grid, self._slots, self._anchors, size, features, own.slot_grid)


def follow(sam: Sam, reference: Reference, plans: Arrays) -> tuple[Reference, dict[int, float]]:
    """Compute the reference with a backend's slots.

    Args:
        sam: the merged model, float32.
        plans: `slot_of_token.I` [B', N] and `anchor_of_slot.I` [B', M] of every block that plans;
            of windows in tiers M is the largest, and slots that a window has not are any.

    Returns:
        The reference with the embedding, masks and scores that follow, and per block the share of
        tokens that PyTorch would have sent to the same destination from the same input.

    Raises:
        CannotFollow: these are no plans of the encoder, or slots are no means of their tokens.
    """
    photo = reference.photo
    module = EncoderModule(sam)
    before = {index: block.tiers for index, block in module.merging.items()}
    try:
        for index, block in module.merging.items():
            slots, anchors = (
                torch.from_numpy(plans[f"{what}.{index}"].astype(np.int64)) for what in PLAN_TENSORS
            )
            block.tiers = tuple(
                _given(index, tier, slots[own], anchors[own])
                for tier, own in zip(block.tiers, _windows(module, block, reference), strict=True)
            )
        followed = {index: block.tiers for index, block in module.merging.items()}
        arrays = photo.pixels, *reference.prompt_feed.values()
        inputs = [torch.from_numpy(array) for array in arrays]
        with torch.inference_mode():
            features = module.features(*inputs)
            masks, scores = stock_masks(sam, features, *prompt_grid(photo.geometry))
    finally:
        for index, tiers in before.items():
            module.merging[index].tiers = tiers
    maps = {name: map_.numpy() for name, map_ in features.items()}
    found = replace(reference, features=maps, masks=masks, scores=scores)
    return found, {index: _same(tiers) for index, tiers in followed.items()}


def _windows(module: EncoderModule, block: MergedBlock, reference: Reference) -> list[Any]:
    """Which maps of the photo the tiers of a block merge, one index each."""
    if len(block.tiers) == 1:
        return [slice(None)]
    assert reference.prompt_box is not None
    encoder = module.encoder
    box = torch.from_numpy(reference.prompt_box) / encoder.patch_embed.proj.stride[0]
    maps = WindowMaps.of(encoder.pos_embed, block.window_size)  # [1, H', W', C], as the photo
    return windows_of_tiers(block.tiers, maps, box)[0]


def _given(index: int, tier: WindowGroup, slots: Tensor, anchors: Tensor) -> WindowGroup:
    """Let a tier merge as it is told; refuse what is no plan of so many tokens in so many slots."""
    method = tier.method
    anchors = anchors[:, : method.num_slots]
    every = torch.arange(method.num_slots)
    if not (
        all(torch.equal(row.unique(), every) for row in slots)
        and bool(((anchors >= 0) & (anchors < method.num_tokens)).all())
    ):
        raise CannotFollow(
            f"what it gives for block {index} are no {method.num_slots} slots of "
            f"{method.num_tokens} tokens"
        )
    return WindowGroup(GivenSlotsMethod(method, slots, anchors), tier.windows)  # type: ignore[arg-type]


def _same(tiers: Sequence[WindowGroup]) -> float:
    """Share of a block's tokens that its methods would have sent to the same destination."""
    given = [(tier.windows, cast(GivenSlotsMethod, tier.method).same) for tier in tiers]
    return sum(windows * same for windows, same in given) / sum(windows for windows, _ in given)
