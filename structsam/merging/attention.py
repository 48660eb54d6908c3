"""SAM's attention with relative positions, for tokens that stand anywhere on the grid.

`logit[a, b] = q_a.k_b / sqrt(d) + q_a.Rh[y_a - y_b] + q_a.Rw[x_a - x_b] (+ log size_b)`

Letters: B maps (images, or images times windows), h heads, M slots, d channels per head, H W token
grid of one map, C = h*d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structsam.errors import UserError
from structsam.merging.attention_forms import FORMS, folded_channels
from structsam.merging.geometry import UnpaddedSlots
from structsam.plans.constants import constant


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a map stand.

    Args:
        grid: (H, W).
        anchors: [B, M] row-major positions in `grid`; None means one token per position.
        log_size: [B, M] float32 added to the logits of every key (proportional attention); None
            adds nothing.
    """

    grid: tuple[int, int]
    anchors: Tensor | None = None
    log_size: Tensor | None = None


def attend(
    attn: Any,
    tokens: Tensor,
    positions: Positions,
    core: AttentionCore,
    unpadded: UnpaddedSlots | None = None,
) -> Tensor:
    """Run SAM's attention on tokens that stand at `positions`, output projection included.

    Args:
        attn: the stock attention module; only its parameters are used.
        tokens: [B, M, C]; with `unpadded`, its rows [S, C].
        core: the form of attention.
        unpadded: the slots that `tokens` are; the others attend as zeros, and receive nothing.

    Returns:
        The shape of `tokens`.
    """
    channels = tokens.shape[-1]
    heads = channels // channels_per_head(attn)
    if unpadded is None:
        projected = attn.qkv(tokens)
    else:
        projected = unpadded.spread(attn.qkv(torch.cat([tokens, tokens.new_zeros(1, channels)])))
    batch, slots = projected.shape[:2]
    # [B, M, 3C] -> three of [B, h, M, d]
    qkv = projected.reshape(batch, slots, 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    rel_h, rel_w = _relative_terms(attn, q, positions)
    out = core(q * attn.scale, k, v, rel_h, rel_w, positions)
    out = out.transpose(1, 2).reshape(batch, slots, channels)
    return attn.proj(out if unpadded is None else unpadded.take(out))


def channels_per_head(attn: Any) -> int:
    """Return d: libraries name the heads differently, and all have tables of positions."""
    return int(attn.rel_pos_h.shape[-1])


def _folded(
    q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, positions: Positions
) -> tuple[Tensor, Tensor]:
    """Relative positions inside the product: `[q|rel_h|rel_w] . [k|onehot(y)|onehot(x)]`.

    No M x M bias exists; the head dimension grows by `folded_channels`. The logs of the sizes are
    one more channel of the keys, against ones.
    """
    batch, heads, slots, dim = q.shape
    anchors, log_size = positions.anchors, positions.log_size
    added = folded_channels(positions.grid, dim, log_size is not None)
    columns = added - int(log_size is not None)
    table = constant(_one_hot_table, positions.grid, columns, q.dtype, like=q)  # [N, K]
    if anchors is None:
        place = table.expand(batch, heads, -1, -1)
    else:
        place = table.index_select(0, anchors.reshape(-1)).reshape(batch, 1, slots, -1)
        place = place.expand(-1, heads, -1, -1)
    of_query, of_key = [q, rel_h, rel_w], [k, place]
    if spare := table.shape[1] - sum(positions.grid):
        of_query.append(q.new_zeros(batch, heads, slots, spare))
    if log_size is not None:
        of_query.append(q.new_ones(batch, heads, slots, 1))
        of_key.append(log_size.to(q.dtype)[:, None, :, None].expand(-1, heads, -1, -1))
    return torch.cat(of_query, -1), torch.cat(of_key, -1)


def _mask(q: Tensor, rel_h: Tensor, rel_w: Tensor, positions: Positions) -> Tensor:
    """Relative positions as an additive mask [B, h, M, M]."""
    anchors = positions.anchors
    if anchors is None:  # keys are the whole grid, row by row
        bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)
    else:
        batch, heads, slots, _ = q.shape
        width = positions.grid[1]
        y_of_key = torch.div(anchors, width, rounding_mode="floor")[:, None, None, :]
        x_of_key = (anchors % width)[:, None, None, :]
        shape = (batch, heads, slots, slots)
        bias = rel_h.gather(-1, y_of_key.expand(shape)) + rel_w.gather(-1, x_of_key.expand(shape))
    if positions.log_size is not None:
        bias = bias + positions.log_size.to(q.dtype)[:, None, None, :]
    return bias


class AttentionCore(nn.Module):
    """`softmax(q k + positions) v`; a module without parameters, so that a graph's nodes tell it.

    Args:
        form: key of `FORMS`.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = FORMS[form]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, positions: Positions
    ) -> Tensor:
        """Attend [B, h, M, d], the scale in q already, with `q.Rh` [B, h, M, H] and `q.Rw`."""
        mask, channels = None, v.shape[-1]
        if self.form.folded:
            q, k = _folded(q, k, rel_h, rel_w, positions)
        else:
            mask = _mask(q, rel_h, rel_w, positions)
        if not self.form.padded:
            return self._attend(q, k, v, mask)
        return self._attend(q, k, F.pad(v, (0, q.shape[-1] - channels)), mask)[..., :channels]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        exporting = torch.compiler.is_exporting()
        if exporting and self.form.operator:
            return _onnx_attention(q, k, v, mask)
        if q.is_cuda and not exporting:  # never holds M x M logits
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        # The plain pattern is what TensorRT and ONNX Runtime fuse, and the faster one on a CPU.
        logits = q @ k.transpose(-2, -1)
        return (logits if mask is None else logits + mask).softmax(-1) @ v


def _onnx_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One `Attention` node of ONNX opset 23."""
    try:
        from torch.onnx.ops import attention
    except ImportError:
        raise UserError(
            f"attention operator needs torch 2.9, and this is {torch.__version__}. Update torch, "
            "or use attention folded_padded"
        ) from None
    return attention(q, k, v, attn_mask=mask, scale=1.0)[0]


def _one_hot_table(
    grid: tuple[int, int], columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Row n is [onehot(y_n) | onehot(x_n) | zeros], [N, columns]."""
    height, width = grid
    eye_h = torch.eye(height, dtype=dtype, device=device)
    eye_w = torch.eye(width, dtype=dtype, device=device)
    of_row = eye_h[:, None, :].expand(-1, width, -1)
    of_column = eye_w[None, :, :].expand(height, -1, -1)
    table = torch.cat([of_row, of_column], -1).reshape(height * width, height + width)
    return F.pad(table, (0, columns - height - width))


def _relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """`table[a, b] = rel_pos[a - b + size - 1]`, [size, size, d]; stretched to 2*size-1 rows."""
    stretched = _stretched(rel_pos, 2 * size - 1)
    offset = constant(_offsets, size, like=stretched)
    return stretched.index_select(0, offset).reshape(size, size, -1)


def _offsets(size: int, device: torch.device) -> Tensor:
    position = torch.arange(size, device=device)
    return (position[:, None] - position[None, :] + size - 1).reshape(-1)


def _stretched(rel_pos: Tensor, rows: int) -> Tensor:
    """Resample a table [K, d] linearly to [rows, d], as stock SAM does for another grid."""
    known = len(rel_pos)
    if known == rows:
        return rel_pos
    place = (np.arange(rows) + 0.5) * known / rows - 0.5
    below = np.clip(np.floor(place), 0, known - 1).astype(np.int64)
    above = np.minimum(below + 1, known - 1)
    share = torch.as_tensor(np.clip(place - below, 0, 1), device=rel_pos.device)[:, None]
    share = share.to(rel_pos.dtype)
    a, b = (
        rel_pos.index_select(0, torch.as_tensor(index, device=rel_pos.device))
        for index in (below, above)
    )
    return a + share * (b - a)


def _rows_and_columns(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    position = torch.arange(height * width, device=device)
    return torch.div(position, width, rounding_mode="floor"), position % width


def _relative_terms(attn: Any, q: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Return `q.Rh` [B, h, M, H] and `q.Rw` [B, h, M, W] of every query."""
    if positions.anchors is None:
        return _relative_terms_of_grid(attn, q, positions.grid)
    return _relative_terms_at(attn, q, positions.anchors, positions.grid)


def _relative_terms_of_grid(attn: Any, q: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return `q.Rh` [B, h, N, H] and `q.Rw` [B, h, N, W] for one query per grid position."""
    batch, heads, _, dim = q.shape
    height, width = grid
    q = q.reshape(batch, heads, height, width, dim)
    # [B, h, H, W, d] @ [H, d, H] and [B, h, W, H, d] @ [W, d, W]
    rel_h = q @ _relative_table(attn.rel_pos_h, height).transpose(1, 2)
    rel_w = q.transpose(2, 3) @ _relative_table(attn.rel_pos_w, width).transpose(1, 2)
    return rel_h.flatten(2, 3), rel_w.transpose(2, 3).flatten(2, 3)


def _relative_terms_at(
    attn: Any, q: Tensor, anchors: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return `q.Rh` [B, h, M, H] and `q.Rw` [B, h, M, W] for queries at `anchors`.

    Every query takes its row of the table, [H, d] and [W, d], shared by the heads.
    """
    batch, heads, slots, dim = q.shape
    height, width = grid
    place = anchors.reshape(-1)
    y, x = (
        line.index_select(0, place)
        for line in constant(_rows_and_columns, height, width, like=anchors)
    )
    per_slot = q.transpose(1, 2).reshape(batch * slots, heads, dim)

    def term(rel_pos: Tensor, place: Tensor, size: int) -> Tensor:
        table = _relative_table(rel_pos, size).transpose(1, 2).reshape(size, dim * size)
        own = table.index_select(0, place).reshape(batch * slots, dim, size)
        return (per_slot @ own).reshape(batch, slots, heads, size).transpose(1, 2)

    return term(attn.rel_pos_h, y, height), term(attn.rel_pos_w, x, width)
