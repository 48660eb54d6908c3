"""The weights of a SAM at another input size, and the step that brings its embedding back."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from structsam.models.spec import ModelSpec


def resized_state(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Weights as trained -> those of `spec`; what needs no resizing is the same tensor.

    The position embedding [1, h, w, C] goes to the grid of `spec` (bicubic, anti-aliased), the
    relative positions [2h-1, d] of the global blocks to its distances, linearly, as SAM's own
    `get_rel_pos` resizes them in every call. Windows keep their tables.
    """
    resized = dict(state)
    embedded = "image_encoder.pos_embed"
    resized[embedded] = _position_embedding(state[embedded], spec.grid)
    for block in spec.global_blocks:
        for name, side in zip(("rel_pos_h", "rel_pos_w"), spec.grid, strict=True):
            table = f"image_encoder.blocks.{block}.attn.{name}"
            resized[table] = _relative_positions(state[table], 2 * side - 1)
    return resized


def stretched_state(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Weights with tables of relative positions as long as the model's, as `get_rel_pos` does.

    Args:
        expected: shape of every tensor of the model; tables of another width stay as they are.
    """
    return {
        name: _relative_positions(tensor.float(), expected[name][0])
        if _other_length(name, tuple(tensor.shape), expected)
        else tensor
        for name, tensor in state.items()
    }


def _other_length(
    name: str, shape: tuple[int, ...], expected: Mapping[str, tuple[int, ...]]
) -> bool:
    if not name.endswith((".attn.rel_pos_h", ".attn.rel_pos_w")) or name not in expected:
        return False
    return len(shape) == 2 and shape[0] > 0 and shape[1:] == expected[name][1:]


def _position_embedding(table: Tensor, grid: tuple[int, int]) -> Tensor:
    planes = table.permute(0, 3, 1, 2)
    resized = F.interpolate(planes, grid, mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def _relative_positions(table: Tensor, rows: int) -> Tensor:
    lines = table.T.unsqueeze(0)  # [1, d, 2h-1]
    return F.interpolate(lines, rows, mode="linear").squeeze(0).T.contiguous()


class EmbeddingResize(nn.Module):
    """Bilinear, [B, C, h, w] -> float32 [B, C, *grid]: the end of the neck in form `upsample`."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, embedding: Tensor) -> Tensor:
        """Resize, pixel centre by pixel centre (`align_corners=False`)."""
        size = list(self.grid)
        return F.interpolate(embedding.float(), size, mode="bilinear", align_corners=False)


def embedding_grid(encoder: ImageEncoderViT) -> tuple[int, int]:
    """Height and width of what an image encoder returns."""
    last = encoder.neck[-1]
    if isinstance(last, EmbeddingResize):
        return last.grid
    height, width = encoder.pos_embed.shape[1:3]
    return height, width
