"""Attention and a transformer block again, slowly, in float64: the second opinion of the tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from segment_anything.modeling.image_encoder import Attention

from tests.structsam import naive_structsam as naive


def random_attention(grid, dim=24, heads=3, seed=0):
    """Stock attention in float64; everything random, relative positions large enough to matter."""
    attn = Attention(dim, num_heads=heads, use_rel_pos=True, input_size=grid).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in attn.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.3
        parameter.data.normal_(0, scale, generator=generator)
    for parameter in (attn.rel_pos_h, attn.rel_pos_w):
        parameter.data.normal_(0, 0.4, generator=generator)
    return attn.requires_grad_(False)


def numpy_of(tensor):
    return tensor.detach().double().numpy()


def linear(layer, rows):
    return rows @ numpy_of(layer.weight).T + numpy_of(layer.bias)


def naive_attention(attn, tokens, anchors, grid, sizes=None, tables=None):
    """methods.md 0.3, query by query: tokens [M, C] that stand at `anchors` [M].

    sizes [M]: their logs are added to the keys' logits; tables: other relative positions.
    """
    heads, (height, width) = attn.num_heads, grid
    table_h, table_w = tables or (numpy_of(attn.rel_pos_h), numpy_of(attn.rel_pos_w))
    slots, channels = tokens.shape
    dim = channels // heads
    query, key, value = np.split(linear(attn.qkv, tokens), 3, axis=1)
    out = np.zeros((slots, channels))
    places = [divmod(int(anchor), width) for anchor in anchors]
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        for a in range(slots):
            q, (y_a, x_a) = query[a, own], places[a]
            logits = key[:, own] @ q / math.sqrt(dim)
            from_h, from_w = table_h @ q, table_w @ q  # unscaled q
            for b, (y_b, x_b) in enumerate(places):
                logits[b] += from_h[y_a - y_b + height - 1] + from_w[x_a - x_b + width - 1]
            if sizes is not None:
                logits += np.log(sizes)
            share = np.exp(logits - logits.max())
            out[a, own] = share / share.sum() @ value[:, own]
    return linear(attn.proj, out)


def layer_norm(norm, rows):
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * numpy_of(norm.weight) + numpy_of(norm.bias)


def head_mean(rows, heads):
    """What methods score: [..., C] -> the mean over the heads [..., C / heads]."""
    return rows.reshape(*rows.shape[:-1], heads, -1).mean(-2)


def naive_structsam_block(block, feature_map, rate):
    """A SAM block with StructSAM inside on one [H, W, C] map, in the order of design section 4."""
    normed = layer_norm(block.norm1, feature_map)
    # on the whole map, before any window is cut
    energy = naive.sobel_energy(head_mean(normed, block.attn.num_heads))
    side = block.window_size or feature_map.shape[0]
    plans = [naive.plan(scores, rate) for scores in naive.partition(energy, side)]

    def merge(index, tokens):
        return naive.merge(tokens, plans[index].slot_of_token, plans[index].num_slots)

    chosen = [(plan.slot_of_token, plan.anchor_of_slot) for plan in plans]
    return block_with_plans(block, feature_map, chosen, merge)


def block_with_plans(block, feature_map, plans, merge, **attention):
    """A SAM block on one [H, W, C] map whose windows merge by given (slots, anchors).

    merge(window, tokens [N, C]) gives the slots' features [M, C].
    """
    height, width, channels = feature_map.shape
    side = block.window_size or height
    pieces = []
    windows = naive.partition(layer_norm(block.norm1, feature_map), side)
    for index, (window, (slots, anchors)) in enumerate(zip(windows, plans, strict=True)):
        merged = merge(index, window.reshape(-1, channels))
        more = {name: value[index] for name, value in attention.items()}
        seen = naive_attention(block.attn, merged, anchors, (side, side), **more)
        pieces.append(naive.unmerge(seen, slots).reshape(side, side, channels))
    x = feature_map + naive.unpartition(pieces, side, (height, width))
    hidden = linear(block.mlp.lin1, layer_norm(block.norm2, x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + linear(block.mlp.lin2, hidden)


def random_map(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()
