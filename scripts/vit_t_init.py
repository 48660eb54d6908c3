"""Weights that `vit_t` starts its training from: what a large data set would teach it first.

A few thousand photographs and two CPU cores are not enough to find these from noise. All of it is
trained further; only the frequencies of the prompt encoder are constants, as in SAM.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from structsam.models import ModelSpec
from structsam.models.load import build_sam


def initialised_sam(spec: ModelSpec, seed: int) -> Any:
    """A `Sam` initialised for training; `build_sam`'s leave nothing at zero."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    sam: Any = build_sam(spec, seed)
    sam.requires_grad_(True)
    for module in sam.modules():
        if isinstance(
            module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding | nn.LayerNorm
        ):
            module.reset_parameters()
        elif type(module).__name__ == "LayerNorm2d":
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        _encoder(sam.image_encoder)
        _decoder(sam)
    torch.random.set_rng_state(state)
    return sam


def _encoder(encoder: Any) -> None:
    _look_at_frequencies(encoder.patch_embed.proj)
    encoder.pos_embed.copy_(0.2 * _sines(encoder.pos_embed.shape))
    for index, block in enumerate(encoder.blocks):
        _look_around(block.attn, index, bool(block.window_size))
        for linear in (block.mlp.lin1, block.mlp.lin2):
            linear.weight.normal_(0, 0.5 * linear.in_features**-0.5)
            linear.bias.zero_()


def _decoder(sam: Any) -> None:
    """Prompts that find their place in the image from the first step on."""
    gaussian = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.normal_()
    # from waves of the image's size down to SAM's: with SAM's alone, a pixel in the middle of a
    # large box has nothing in common with the box's corners
    scales = torch.logspace(math.log10(0.06), 0, gaussian.shape[1])
    gaussian.mul_(scales[torch.randperm(len(scales))])
    transformer = sam.mask_decoder.transformer
    crossing = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossing += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attn in crossing:  # equal projections: a token attends to its own position
        same = 1.5 * _orthogonal(*attn.q_proj.weight.shape)
        attn.q_proj.weight.copy_(same)
        attn.k_proj.weight.copy_(same)
    prompt, decoder = sam.prompt_encoder, sam.mask_decoder
    tables = [*prompt.point_embeddings, prompt.not_a_point_embed, prompt.no_mask_embed]
    for table in (*tables, decoder.mask_tokens, decoder.iou_token):
        table.weight.mul_(0.4)  # quieter than positions, which they are added to


def _look_at_frequencies(conv: nn.Conv2d) -> None:
    """The patch embedding as a discrete cosine transform: low frequencies, two thirds of them grey.

    Photographs fall off with frequency, so the rows rise with it.
    """
    side, rows = conv.kernel_size[0], conv.out_channels
    x = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * k * x) for k in range(side)]) * (2 / side) ** 0.5
    waves[0] *= 0.5**0.5
    order = sorted((math.hypot(u, v), u, v) for u in range(side) for v in range(side))
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [-0.5, 1, -0.5]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    chroma = rows // 6
    weight = [
        gain * (frequency + 0.7) / side * colour[:, None, None] * torch.outer(waves[u], waves[v])
        for colour, count, gain in zip(
            colours, (rows - 2 * chroma, chroma, chroma), (0.7, 1.4, 1.4), strict=True
        )
        for frequency, u, v in order[:count]
    ]
    conv.weight.copy_(torch.stack(weight))
    assert conv.bias is not None
    conv.bias.zero_()


def _sines(shape: torch.Size) -> Tensor:
    """Sines and cosines of rows and columns, [1, H, W, C]."""
    _, height, width, channels = shape
    quarter = channels // 4
    frequency = 0.8 * 64.0 ** (-torch.arange(quarter) / quarter)
    y, x = torch.arange(height)[:, None] * frequency, torch.arange(width)[:, None] * frequency
    rows = torch.cat([y.sin(), y.cos()], -1)[:, None].expand(height, width, -1)
    columns = torch.cat([x.sin(), x.cos()], -1)[None].expand(height, width, -1)
    return torch.cat([rows, columns], -1)[None]


def _look_around(attn: Any, index: int, windowed: bool) -> None:
    """Heads that begin as small filters over their surroundings, and compare by content.

    The bias of q times the tables of relative positions is -tau |offset - centre|^2: a head looks
    at a spot beside its token (as in ConViT, d'Ascoli et al. 2021), the first one around itself.
    Equal projections of q and k make similar tokens attend to each other, and projecting back what
    was taken, negated, sharpens (mimetic initialisation, Trockman and Kolter 2023).
    """
    channels, heads = attn.qkv.in_features, attn.num_heads
    dim = channels // heads
    weight, bias = attn.qkv.weight, attn.qkv.bias
    value = _orthogonal(channels, channels)
    weight[2 * channels :] = 0.6 * value
    noise = 0.3 * channels**-0.5 * torch.randn(channels, channels)
    attn.proj.weight.copy_(noise - 0.6 * value.T)
    attn.proj.bias.zero_()
    bias.zero_()
    size = (attn.rel_pos_h.shape[0] + 1) // 2
    offset = (torch.arange(2 * size - 1) - (size - 1)) / (1 if windowed else size / 14)
    offset = offset.clamp(-8, 8)  # of both terms, or the linear one wins at the far end
    positional = _orthogonal(dim, 3)
    around, down, right = positional.T
    for table, along in ((attn.rel_pos_h, down), (attn.rel_pos_w, right)):
        table.copy_(0.5 * torch.outer(-offset.square(), around) + 0.5 * torch.outer(offset, along))
    for head in range(heads):
        rows = slice(head * dim, (head + 1) * dim)
        same = 0.6 * _orthogonal(dim, channels)
        same = same - positional @ (positional.T @ same)  # content does not move the spot
        weight[:channels][rows] = same
        weight[channels : 2 * channels][rows] = same
        tau = ((0.12, 0.5, 0.5) if windowed else (0.0, 0.1, 0.5))[head % 3]
        angle = 2 * math.pi * (0.381966 * index + head / 2)
        reach = 2.6 * tau if head % 3 else 0.0
        centre = math.sin(angle) * down + math.cos(angle) * right
        bias[rows] = 2 * (tau * around + reach * centre)


def _orthogonal(rows: int, columns: int) -> Tensor:
    """A random matrix with orthonormal rows or columns, whichever are fewer."""
    q, r = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))
    q = q * torch.sign(torch.diagonal(r))
    return q if rows >= columns else q.T
