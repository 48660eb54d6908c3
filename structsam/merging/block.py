"""SAM's transformer block with merging inside, of any library in `encoder_parts.py`.

Order inside a block: norm -> energy -> plan -> windows and merge -> qkv -> attention -> output
projection -> unmerge and windows back, one gather -> residual at full resolution -> MLP. Projecting
before unmerging is the same function as after it, on fewer tokens. Placement `block` runs the MLP
on the slots of the same plan, too; `stage` merges the residual stream once for a run of blocks with
one window layout, runs them on the slots, and adds the difference to every token's own residual.
Linear layers leave out slots that are known to be padding (`geometry.py`).

Letters: B images, W windows of an image (1 where a block attends over the whole grid), H' W' token
grid of the image, N tokens of one map, C = h*d channels of h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from structsam.errors import UserError
from structsam.merging.attention import AttentionCore, Positions, attend, channels_per_head
from structsam.merging.block_plan import BlockMerging, MapGroup, plan_block
from structsam.merging.encoder_parts import norms_of
from structsam.merging.geometry import WindowMaps
from structsam.merging.window_group import WindowGroup
from structsam.methods.base import MergeMethod


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


class MergedBlock(nn.Module):
    """A SAM block that merges tokens around its attention, its MLP, or a run of blocks.

    It shares the submodules of the block it replaces under the same names, so parameters, state
    dict keys and later `.half()` or `.to(device)` calls act on both.

    Args:
        block: the stock block, kept in `original`.
        tiers: merging for the maps of this block; several give the windows that the prompt box
            covers most to the first tier, and so on. None computes attention on all tokens.
        attention: key of `structsam.merging.attention_forms.FORMS`.
        proportional: add the log of a slot's size to the logits of its key.
        prompt: where the prompt box is found; None when the model takes none.
        placement: one of `structsam.config.PLACEMENTS`.
    """

    attn: Any  # of the stock block, as the MLP
    mlp: Any

    def __init__(
        self,
        block: Any,
        tiers: Sequence[WindowGroup],
        attention: str,
        proportional: bool = False,
        prompt: PromptBox | None = None,
        placement: str = "attention",
    ) -> None:
        super().__init__()
        before_attention, before_mlp = self._norms = norms_of(block)
        for name in (before_attention, "attn", before_mlp, "mlp"):
            setattr(self, name, getattr(block, name))
        self.window_size: int = block.window_size
        self.tiers = tuple(tiers)
        self.attention, self.core = attention, AttentionCore(attention)
        self.proportional = proportional
        self.prompt = prompt
        self.placement = placement
        self._original = (block,)  # in tuples, so that they are not registered as submodules
        self._stage: tuple[MergedBlock, ...] = (self,)
        self.on_plan: Callable[[BlockMerging], None] | None = None
        self.train(block.training)

    def norm_before_attention(self, x: Tensor) -> Tensor:
        """Normalise what attention sees."""
        normed: Tensor = getattr(self, self._norms[0])(x)
        return normed

    def norm_before_mlp(self, x: Tensor) -> Tensor:
        """Normalise what the MLP sees."""
        normed: Tensor = getattr(self, self._norms[1])(x)
        return normed

    @property
    def original(self) -> Any:
        """The stock block that this one replaces."""
        return self._original[0]

    @property
    def method(self) -> MergeMethod | None:
        """Merging of the first tier; None where nothing is merged."""
        return self.tiers[0].method if self.tiers else None

    @property
    def plans(self) -> bool:
        """Whether this block makes a plan: it merges, and no earlier block of its stage has."""
        return bool(self.tiers and self._stage)

    def run_stage(self, blocks: Sequence[MergedBlock]) -> None:
        """Let this block run all `blocks`, itself first, on its slots; the others then do nothing.

        They must share the window size and keep equally many tokens.
        """
        self._stage = tuple(blocks)
        for block in blocks[1:]:
            block._stage = ()

    def forward(self, x: Tensor) -> Tensor:
        """Map a token grid [B, H', W', C] to one of the same shape."""
        if not self._stage:
            return x  # an earlier block of the stage has done this one's work
        normed = self.norm_before_attention(x)
        if not self.tiers:
            whole = WindowMaps.of(x, self.window_size)
            attended = attend(self.attn, whole.cut(normed), Positions(whole.grid), self.core)
            x = x + whole.put_back(attended)
            return x + self.mlp(self.norm_before_mlp(x))
        merging = self._merging(normed)
        if self.on_plan:
            self.on_plan(merging)
        if self.placement == "stage":
            return x + merging.around(x, self._stage_on_slots)
        x = x + merging.around(normed, self._attention_on_slots)
        if self.placement == "block":
            return x + merging.around(self.norm_before_mlp(x), lambda rows, _: self.mlp(rows))
        return x + self.mlp(self.norm_before_mlp(x))

    def metric_map(self, x: Tensor) -> Tensor:
        """Return what methods score: [B, H', W', C] -> the mean over the heads, float32, or x."""
        if self.method is None or self.method.metric == "all":
            return x
        return x.float().unflatten(-1, (-1, channels_per_head(self.attn))).mean(-2)

    def _attention_on_slots(self, rows: Tensor, group: MapGroup) -> Tensor:
        """Attention and output projection of normed slots."""
        return attend(self.attn, rows, group.positions, self.core, group.unpadded)

    def _stage_on_slots(self, rows: Tensor, group: MapGroup) -> Tensor:
        """What the blocks of the stage add to slots of the residual stream."""
        x = rows
        for block in self._stage:
            normed = block.norm_before_attention(x)
            if group.unpadded is None and group.is_padding is not None:
                # SAM pads with zeros after the norm, in every block;
                # a product: ONNX Runtime's Where takes three times as long
                normed = normed * (~group.is_padding).unsqueeze(-1).to(normed.dtype)
            x = x + block._attention_on_slots(normed, group)
            x = x + block.mlp(block.norm_before_mlp(x))
        return x - rows

    def _merging(self, normed: Tensor) -> BlockMerging:
        """Plan the maps of the normed image [B, H', W', C]."""
        assert self.method is not None
        metric = self.metric_map(normed)
        return plan_block(
            self.tiers,
            WindowMaps.of(normed, self.window_size),
            metric.to(normed.dtype),
            self.method.token_energy(metric),
            self.prompt.of(normed.shape, normed.device) if self.prompt is not None else None,
            self.proportional,
        )
