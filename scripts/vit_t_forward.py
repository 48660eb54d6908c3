"""SAM's encoder and decoder for training: the stock modules' parameters, fewer passes over memory.

With AMX or a GPU the matrix products are nearly free, and what costs is reading and writing
activations. So relative positions are folded into the product, what the prompts of one image
share is computed once, and the decoder stays channels-last. Any token grid is allowed: positions
are resized as the stock encoder resizes them. `tests/test_train_vit_t.py` holds the equality with
the stock modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ALIGN = 32  # head dimensions are padded to this: AMX and tensor cores like it


def encode(encoder: Any, images: Tensor) -> Tensor:
    """Normalised images [B, 3, S, S] to embeddings [B, N, 256], N = (S / patch)^2 tokens."""
    x = encoder.patch_embed(images).float()
    grid = x.shape[1]
    x = x + resized_positions(encoder.pos_embed, grid)
    for block in encoder.blocks:
        normed = _layer_norm(block.norm1, x)
        x = x + (
            _windowed(block.attn, normed, block.window_size)
            if block.window_size
            else _attend(block.attn, normed)
        )
        x = x + block.mlp(_layer_norm(block.norm2, x))
    first, norm1, second, norm2 = encoder.neck
    x = F.linear(x, first.weight.flatten(1))
    x = _layer_norm(norm1, x)
    x = second(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return _layer_norm(norm2, x).flatten(1, 2)


def resized_positions(pos_embed: Tensor, grid: int) -> Tensor:
    """Absolute positions [1, H, W, C] at grid x grid."""
    if pos_embed.shape[1] == grid:
        return pos_embed
    positions = pos_embed.permute(0, 3, 1, 2)
    positions = F.interpolate(positions, size=(grid, grid), mode="bilinear", align_corners=False)
    return positions.permute(0, 2, 3, 1)


def _windowed(attn: Any, x: Tensor, window: int) -> Tensor:
    batch, height, width, channels = x.shape
    pad_h, pad_w = -height % window, -width % window
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    rows, columns = (height + pad_h) // window, (width + pad_w) // window
    x = x.view(batch, rows, window, columns, window, channels).permute(0, 1, 3, 2, 4, 5)
    x = _attend(attn, x.reshape(-1, window, window, channels))
    x = x.view(batch, rows, columns, window, window, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


def _attend(attn: Any, x: Tensor) -> Tensor:
    """Attention over square maps [M, g, g, C]: [q | q.Rh | q.Rw] . [k | onehot(y) | onehot(x)]."""
    maps, grid, _, channels = x.shape
    heads, head_dim = attn.num_heads, channels // attn.num_heads
    qkv = attn.qkv(x).view(maps, grid * grid, 3, heads, head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [M, h, N, d]
    folded = head_dim + 2 * grid
    spare = -folded % _ALIGN
    square = q.reshape(maps, heads, grid, grid, head_dim)
    rel_h = torch.einsum("mhyxc,ykc->mhyxk", square, _relative(attn.rel_pos_h, grid))
    rel_w = torch.einsum("mhyxc,xkc->mhyxk", square, _relative(attn.rel_pos_w, grid))
    zeros = q.new_zeros(1, 1, 1, 1).expand(maps, heads, grid * grid, spare)
    q = torch.cat([q * attn.scale, rel_h.flatten(2, 3), rel_w.flatten(2, 3), zeros], dim=-1)
    onehots = F.pad(_onehots(grid, q.dtype, q.device), (0, spare))
    k = torch.cat([k, onehots.expand(maps, heads, -1, -1)], dim=-1)
    v = F.pad(v, (0, folded + spare - head_dim))
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :head_dim]
    return attn.proj(out.transpose(1, 2).reshape(maps, grid, grid, channels))


def _relative(table: Tensor, grid: int) -> Tensor:
    """Rows of a relative position table as [query, key, d]."""
    wanted = 2 * grid - 1
    if table.shape[0] != wanted:
        table = F.interpolate(table.T[None], size=wanted, mode="linear")[0].T
    # row i of the flipped windows is table[i : i + grid], key k sits at i - k + grid - 1
    return table.unfold(0, grid, 1).flip(2).transpose(1, 2)


def _onehots(grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    eye = torch.eye(grid, dtype=dtype, device=device)
    return torch.cat([eye.repeat_interleave(grid, 0), eye.repeat(grid, 1)], dim=1)


def embed_prompts(prompt_encoder: Any, coords: Tensor, labels: Tensor) -> Tensor:
    """Coordinates [n, K, 2] in 0..1 and labels [n, K] to tokens [n, K, 256].

    Labels: 1 object, 0 background, 2 and 3 box corners, -1 padding.
    """
    encoding = prompt_encoder.pe_layer._pe_encoding(coords)
    names = [prompt_encoder.not_a_point_embed, *prompt_encoder.point_embeddings]
    table = torch.cat([name.weight for name in names])
    chosen = F.one_hot(labels + 1, len(names)).to(table.dtype) @ table
    return encoding * (labels >= 0).unsqueeze(-1) + chosen


def decode(
    sam: Any, embeddings: Tensor, sparse: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, N, 256], prompts [B, P, K, 256] to logits [B, P, 4, 4g, 4g], IoUs [B, P, 4].

    masks: earlier logits [B, P, 4g, 4g] given as mask prompt, or None.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    batch, count, _, channels = sparse.shape
    tokens_per_image = embeddings.shape[1]
    grid = round(tokens_per_image**0.5)
    flat = batch * count
    position = prompts.pe_layer((grid, grid)).flatten(1).T  # [N, 256]
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(flat, -1, -1), sparse.flatten(0, 1)], dim=1)
    if masks is None:
        keys = embeddings + prompts.no_mask_embed.weight
    else:
        dense = prompts.mask_downscaling(masks.flatten(0, 1).unsqueeze(1))
        dense = dense.flatten(2).transpose(1, 2).view(batch, count, tokens_per_image, channels)
        keys = (embeddings.unsqueeze(1) + dense).flatten(0, 1)
    queries = tokens
    for layer in decoder.transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _cross(layer.self_attn, queries, queries, queries)
        else:
            q = queries + tokens
            queries = queries + _cross(layer.self_attn, q, q, queries)
        queries = _layer_norm(layer.norm1, queries)
        attn = layer.cross_attn_token_to_image
        queries = queries + _token_to_image(attn, queries + tokens, keys, position)
        queries = _layer_norm(layer.norm2, queries)
        queries = _layer_norm(layer.norm3, queries + layer.mlp(queries))
        attn = layer.cross_attn_image_to_token
        moved = _image_to_token(attn, keys, position, queries + tokens, queries)
        if keys.shape[0] != flat:  # until here the prompts of an image shared its keys
            keys = keys.unsqueeze(1).expand(-1, count, -1, -1).flatten(0, 1)
        keys = _layer_norm(layer.norm4, keys.to(moved.dtype) + moved)
    attn = decoder.transformer.final_attn_token_to_image
    queries = queries + _token_to_image(attn, queries + tokens, keys, position)
    queries = _layer_norm(decoder.transformer.norm_final_attn, queries)
    hyper = torch.stack(
        [mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    logits = _upscaled_masks(decoder.output_upscaling, keys, hyper, grid)
    ious = decoder.iou_prediction_head(queries[:, 0])
    return logits.view(batch, count, *logits.shape[1:]), ious.view(batch, count, -1)


def _upscaled_masks(upscaling: Any, keys: Tensor, hyper: Tensor, grid: int) -> Tensor:
    """The two transposed convolutions of stride 2 as linear layers, and the product with hyper."""
    first, norm, _, second, _ = upscaling
    x = _doubled(first, keys)  # [n, N, 4, 64]
    x = F.gelu(_layer_norm(norm, x))
    x = F.gelu(_doubled(second, x))  # [n, N, 4, 4, 32]
    masks = torch.matmul(hyper, x.flatten(1, 3).transpose(1, 2))  # [n, 4, N * 16]
    masks = masks.view(*hyper.shape[:2], grid, grid, 2, 2, 2, 2)
    return masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*hyper.shape[:2], 4 * grid, 4 * grid)


def _doubled(conv: Any, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2: [..., in] to [..., 4, out]."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [(dy, dx, out), in]
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))


def _token_to_image(attn: Any, q: Tensor, keys: Tensor, position: Tensor) -> Tensor:
    """Tokens [n, T, C] attend to the image [n or B, N, C]."""
    shape = q.shape
    k = attn.k_proj(keys) + F.linear(position, attn.k_proj.weight)
    q = attn.q_proj(q).view(keys.shape[0], -1, attn.internal_dim)  # prompts of one image in a row
    out = _heads_attention(attn, q, k, attn.v_proj(keys))
    return attn.out_proj(out.view(*shape[:2], -1))


def _image_to_token(
    attn: Any, keys: Tensor, position: Tensor, tokens: Tensor, values: Tensor
) -> Tensor:
    q = attn.q_proj(keys) + F.linear(position, attn.q_proj.weight)
    times = tokens.shape[0] // keys.shape[0]
    if times > 1:
        q = q.unsqueeze(1).expand(-1, times, -1, -1).flatten(0, 1)
    return attn.out_proj(_heads_attention(attn, q, attn.k_proj(tokens), attn.v_proj(values)))


def _cross(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attn.out_proj(_heads_attention(attn, attn.q_proj(q), attn.k_proj(k), attn.v_proj(v)))


def _heads_attention(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    # few tokens on one side: by hand is several times faster on a CPU than the fused backward
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`LayerNorm`, or `LayerNorm2d` on channels-last input; statistics in FP32 on any type."""
    weight: Any = norm.weight
    return F.layer_norm(x, weight.shape, weight, norm.bias, norm.eps)  # type: ignore[arg-type]
