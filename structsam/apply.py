"""Put merging into an encoder, and take it out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from structsam.block_table import BlockRow, block_table
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.merging.attention_forms import read_forms
from structsam.merging.block import MergedBlock, PromptBox
from structsam.merging.encoder_parts import EncoderParts, find_encoder

Model = TypeVar("Model", bound=nn.Module)


def apply_merging(model: Model, config: MergeConfig | None = None, **choice: Any) -> Model:
    """Merge tokens in the chosen blocks of a SAM model, in place.

    Safe to repeat: earlier merging is removed first. Blocks that merge nothing (rate 0, or not in
    `layers`) keep all tokens and use the same attention form, equal to stock SAM up to rounding.

    Args:
        model: a `Sam` of segment_anything or segment_anything_hq, a `SamModel` of transformers, a
            `CPSAM` of cellpose, or its image encoder.
        config: what merges where; the default one when None.
        choice: fields of `MergeConfig` in place of those of `config`, by name, such as
            `method="structsam", rate=0.5, layers="global", options={"operator": "central"}`.

    Returns:
        The same model.

    Raises:
        UserError: not a SAM model, or an argument outside its range (nothing is changed then).
    """
    config = MergeConfig.of(config, **choice)
    encoder, parts = _encoder_and_parts(model)
    if encoder.pos_embed is None:
        raise UserError(
            "the encoder has no pos_embed, which says how large its grid is. Build the encoder "
            "with use_abs_pos=True"
        )
    blocks = parts.blocks_of(encoder)
    stock = [block.original if isinstance(block, MergedBlock) else block for block in blocks]
    table = block_table(
        config,
        tuple(encoder.pos_embed.shape[1:3]),
        tuple(block.window_size for block in stock),
    )
    if parts.early_features:
        _require_early_features(table)
    prompt = PromptBox() if config.prompt_aware else None
    forms = read_forms(config.attention)
    merged = []
    for block, row in zip(stock, table, strict=True):
        _require_relative_positions(block)
        merged.append(
            MergedBlock(
                block, row.tiers, forms[row.kind], config.proportional, prompt, config.placement
            )
        )
    for row in table:
        if row.stage[0] == row.index:
            merged[row.index].run_stage([merged[index] for index in row.stage])
    remove_merging(model)
    for index, block in enumerate(merged):
        blocks[index] = block
    return model


def remove_merging(model: Model) -> Model:
    """Put the stock blocks back; the model computes bit for bit what it did before.

    Returns:
        The same model, whether or not it was merged.
    """
    blocks = blocks_of(model)
    for index, block in enumerate(blocks):
        if isinstance(block, MergedBlock):
            blocks[index] = block.original.train(block.training)
    return model


def merged_blocks(model: nn.Module) -> list[MergedBlock]:
    """Return the blocks that `apply_merging` put in; empty when the model is stock."""
    return [block for block in blocks_of(model) if isinstance(block, MergedBlock)]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the transformer blocks of a SAM model's image encoder, as they are now."""
    encoder, parts = _encoder_and_parts(model)
    return parts.blocks_of(encoder)


def set_prompt_box(model: nn.Module, box: Tensor | Sequence[float]) -> None:
    """Tell a prompt-aware model which box the next images are encoded for.

    The embedding then belongs to that box: encode again when it changes.

    Args:
        model: merged with `prompt_aware`.
        box: [4] or [B, 4] x0, y0, x1, y1 in pixels of the encoder's input.

    Raises:
        UserError: the model takes no box, or the box has another shape.
    """
    encoder, parts = _encoder_and_parts(model)
    prompts = {block.prompt for block in merged_blocks(model) if block.prompt}
    if not prompts:
        raise UserError("the model takes no prompt box. Merge it with prompt_aware='rank' first")
    pixels = torch.as_tensor(box, dtype=torch.float32)
    if pixels.ndim not in (1, 2) or pixels.shape[-1] != 4:
        raise UserError(f"a prompt box has 4 numbers x0, y0, x1, y1, not {list(pixels.shape)}")
    if not torch.compiler.is_exporting():
        if not pixels.isfinite().all():
            raise UserError("a prompt box has a coordinate that is no number. Use finite pixels")
        if bool((pixels[..., 2:] <= pixels[..., :2]).any()):
            raise UserError(
                "a prompt box is x0, y0, x1, y1 with x0 < x1 and y0 < y1: first the top left "
                "corner, then the bottom right one"
            )
    stride = parts.stride_of(encoder)
    for prompt in prompts:
        prompt.tokens = pixels.reshape(-1, 4) / stride


def _require_early_features(table: Sequence[BlockRow]) -> None:
    """SAM-HQ reads the tokens after the first global block: no stage may go on beyond it."""
    first = next((row for row in table if row.is_global), None)
    if first is not None and first.stage[-1] != first.index:
        raise UserError(
            f"SAM-HQ takes early features after block {first.index}, and placement 'stage' would "
            f"merge it together with block {first.stage[-1]}. Use `placement='block'`"
        )


def _require_relative_positions(block: Any) -> None:
    """Tables of another length than the map's are stretched, as stock SAM does in every call."""
    for name in ("rel_pos_h", "rel_pos_w"):
        table = getattr(block.attn, name, None)
        if table is None or not table.shape[0]:
            raise UserError(
                f"a block has no {name}, and merged tokens attend by relative positions. Build the "
                "encoder with use_rel_pos=True"
            )


def image_encoder_of(model: nn.Module) -> Any:
    """Return the ViT image encoder of a SAM model, or the encoder itself.

    Raises:
        UserError: the model is neither.
    """
    return _encoder_and_parts(model)[0]


def _encoder_and_parts(model: nn.Module) -> tuple[Any, EncoderParts]:
    found = find_encoder(model)
    if found is None:
        raise UserError(
            f"{type(model).__name__} is not a SAM model. Pass a Sam of segment_anything "
            "(structsam.load_sam makes one) or segment_anything_hq, a SamModel of transformers, "
            "or its image encoder"
        )
    return found
