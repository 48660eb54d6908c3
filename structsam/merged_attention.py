"""SAM's transformer block with merging inside, and its attention for tokens at any position.

Order inside a block: norm -> energy -> windows -> merge -> qkv -> attention -> output projection
-> unmerge -> windows back -> residual at full resolution -> MLP. Projecting before unmerging is
the same function as after it, on fewer tokens.

Letters: B maps (images, or images times windows), h heads, M slots, d channels per head,
H W token grid of one map, C = h*d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn

from structsam.merge_plan import MergePlan
from structsam.methods.base import MergeMethod


class MergedBlock(nn.Module):
    """A SAM block that merges tokens around its attention.

    It shares the submodules of the block it replaces under the same names, so parameters, state
    dict keys and later `.half()` or `.to(device)` calls act on both.

    Args:
        block: the stock block, kept in `original`.
        method: merging for one map of this block; None computes attention on all tokens.
        attention: key of `ATTENTIONS`.
    """

    def __init__(self, block: Block, method: MergeMethod | None, attention: str) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp
        self.window_size: int = block.window_size
        self.method = method
        self.attention = attention
        self._original = (block,)  # in a tuple, so that it is not registered as a submodule
        self.on_plan: Callable[[MergePlan], None] | None = None
        self.train(block.training)

    @property
    def original(self) -> Block:
        """The stock block that this one replaces."""
        return self._original[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map a token grid [B, H, W, C] to one of the same shape."""
        normed = self.norm1(x)
        x = x + self._attend(normed)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        energy = self.method.token_energy(x) if self.method else None  # [B, H, W]
        window = self.window_size
        if window:
            x, padded = window_partition(x, window)  # [B*windows, window, window, C]
            if energy is not None:
                energy, _ = window_partition(energy.unsqueeze(-1), window)  # padding: energy 0
        grid = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)  # [B', N, C]
        if self.method is None:
            y = attend(self.attn, tokens, None, grid, self.attention)
        else:
            plan = self.method.plan(tokens, None if energy is None else energy.flatten(1))
            if self.on_plan:
                self.on_plan(plan)
            merged = attend(
                self.attn, plan.merge(tokens), plan.anchor_of_slot, grid, self.attention
            )
            y = plan.unmerge(merged)
        y = y.reshape(-1, *grid, channels)
        if window:
            y = window_unpartition(y, window, padded, (height, width))
        return y


def attend(
    attn: Attention, tokens: Tensor, anchors: Tensor | None, grid: tuple[int, int], core: str
) -> Tensor:
    """Run SAM's attention on tokens that stand at `anchors`, output projection included.

    `logit[a, b] = q_a.k_b / sqrt(d) + q_a.Rh[y_a - y_b] + q_a.Rw[x_a - x_b]`

    Args:
        attn: the stock attention module; only its parameters are used.
        tokens: [B, M, C].
        anchors: [B, M] row-major positions in `grid`; None means one token per position.
        core: key of `ATTENTIONS`.

    Returns:
        [B, M, C].
    """
    batch, slots, channels = tokens.shape
    heads = attn.num_heads
    # [B, M, 3C] -> three of [B, h, M, d]
    qkv = attn.qkv(tokens).reshape(batch, slots, 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if anchors is None:
        rel_h, rel_w = _relative_terms_of_grid(attn, q, grid)
    else:
        rel_h, rel_w = _relative_terms(attn, q, anchors, grid)
    out = ATTENTIONS[core](q * attn.scale, k, v, rel_h, rel_w, anchors, grid)
    return attn.proj(out.transpose(1, 2).reshape(batch, slots, channels))


def _folded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    anchors: Tensor | None,
    grid: tuple[int, int],
) -> Tensor:
    """Relative positions inside the product: `[q|rel_h|rel_w] . [k|onehot(y)|onehot(x)]`.

    No M x M bias exists; the head dimension grows by H + W, rounded up to a multiple of 8.
    """
    batch, heads, slots, dim = q.shape
    height, width = grid
    table = _one_hot_table(grid, dim, q)  # [N, H + W + spare]
    if anchors is None:
        place = table.expand(batch, heads, -1, -1)
    else:
        place = table.index_select(0, anchors.reshape(-1)).reshape(batch, 1, slots, -1)
        place = place.expand(-1, heads, -1, -1)
    parts = [q, rel_h, rel_w]
    spare = table.shape[1] - height - width
    if spare:
        parts.append(q.new_zeros(batch, heads, slots, spare))
    return _softmax_attention(torch.cat(parts, -1), torch.cat([k, place], -1), v)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    anchors: Tensor | None,
    grid: tuple[int, int],
) -> Tensor:
    """Relative positions as an explicit [B, h, M, M] bias; kept to compare with."""
    height, width = grid
    if anchors is None:
        anchors = torch.arange(height * width, device=q.device).expand(q.shape[0], -1)
    batch, heads, slots, _ = q.shape
    y_of_key = torch.div(anchors, width, rounding_mode="floor")[:, None, None, :]
    x_of_key = (anchors % width)[:, None, None, :]
    shape = (batch, heads, slots, slots)
    bias = rel_h.gather(-1, y_of_key.expand(shape)) + rel_w.gather(-1, x_of_key.expand(shape))
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


ATTENTIONS: dict[str, Callable[..., Tensor]] = {"folded": _folded, "dense": _dense}


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with the scale already in q; v may have fewer channels than q and k."""
    if q.is_cuda and not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)  # never holds M x M logits
    # The plain pattern is what TensorRT and ONNX Runtime fuse, and the faster one on a CPU.
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def _one_hot_table(grid: tuple[int, int], dim: int, like: Tensor) -> Tensor:
    """Row n is [onehot(y_n) | onehot(x_n) | zeros], [N, K] with (dim + K) % 8 == 0."""
    height, width = grid
    eye_h = torch.eye(height, dtype=like.dtype, device=like.device)
    eye_w = torch.eye(width, dtype=like.dtype, device=like.device)
    rows = eye_h[:, None, :].expand(-1, width, -1)
    columns = eye_w[None, :, :].expand(height, -1, -1)
    table = torch.cat([rows, columns], -1).reshape(height * width, height + width)
    return F.pad(table, (0, -(dim + height + width) % 8))


def _relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """`table[a, b] = rel_pos[a - b + size - 1]`, [size, size, d]."""
    position = torch.arange(size, device=rel_pos.device)
    offset = position[:, None] - position[None, :] + size - 1
    return rel_pos.index_select(0, offset.reshape(-1)).reshape(size, size, -1)


def _relative_terms_of_grid(
    attn: Attention, q: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return `q.Rh` [B, h, N, H] and `q.Rw` [B, h, N, W] for one query per grid position."""
    batch, heads, _, dim = q.shape
    height, width = grid
    q = q.reshape(batch, heads, height, width, dim)
    # [B, h, H, W, d] @ [H, d, H] and [B, h, W, H, d] @ [W, d, W]
    rel_h = q @ _relative_table(attn.rel_pos_h, height).transpose(1, 2)
    rel_w = q.transpose(2, 3) @ _relative_table(attn.rel_pos_w, width).transpose(1, 2)
    return rel_h.flatten(2, 3), rel_w.transpose(2, 3).flatten(2, 3)


def _relative_terms(
    attn: Attention, q: Tensor, anchors: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return `q.Rh` [B, h, M, H] and `q.Rw` [B, h, M, W] for queries at `anchors`.

    Every query takes its row of the table, [H, d] and [W, d], shared by the heads.
    """
    batch, heads, slots, dim = q.shape
    height, width = grid
    position = torch.arange(height * width, device=anchors.device)
    place = anchors.reshape(-1)
    y = torch.div(position, width, rounding_mode="floor").index_select(0, place)
    x = (position % width).index_select(0, place)
    per_slot = q.transpose(1, 2).reshape(batch * slots, heads, dim)

    def term(rel_pos: Tensor, place: Tensor, size: int) -> Tensor:
        table = _relative_table(rel_pos, size).transpose(1, 2).reshape(size, dim * size)
        own = table.index_select(0, place).reshape(batch * slots, dim, size)
        return (per_slot @ own).reshape(batch, slots, heads, size).transpose(1, 2)

    return term(attn.rel_pos_h, y, height), term(attn.rel_pos_w, x, width)
