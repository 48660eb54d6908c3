"""The geometry of a SAM that nobody described, from the shapes of its tensors.

Width and patch come from the patch embedding, the grid from the position embedding, heads from the
width of the tables of relative positions, and every block's window from their length: a map of
s x s tokens has 2 s - 1 rows. What no shape tells is SAM's: the heads of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from structsam.models.checkpoint_keys import is_hq
from structsam.models.spec import DecoderSpec, ModelSpec

Shapes = Mapping[str, tuple[int, ...]]

_ENCODER = "image_encoder."
_LAYERS = "mask_decoder.transformer.layers."


def derived_spec(shapes: Shapes, stretch_positions: bool = False) -> ModelSpec:
    """Describe the model that has these tensors, under segment-anything's names.

    Args:
        stretch_positions: every block attends over the whole grid, with tables of any length.

    Raises:
        ValueError: a tensor that tells a size is missing, or sizes contradict each other; the
            message says which.
    """
    width, _, patch, other_side = _shape(shapes, f"{_ENCODER}patch_embed.proj.weight", 4)
    _, height, grid, _ = _shape(shapes, f"{_ENCODER}pos_embed", 4)
    if (patch, height) != (other_side, grid):
        raise ValueError(f"patches are {patch} x {other_side} on a grid of {height} x {grid}")
    depth = _count(shapes, f"{_ENCODER}blocks.")
    tables = [_shape(shapes, f"{_ENCODER}blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    if len({dim for _, dim in tables}) != 1 or width % tables[0][1]:
        raise ValueError(f"{width} channels do not fit heads of {sorted({d for _, d in tables})}")
    sides = [grid] * depth if stretch_positions else [(rows + 1) // 2 for rows, _ in tables]
    windows = {side for side in sides if side != grid}
    if len(windows) > 1 or max(windows, default=0) > grid:
        raise ValueError(
            f"tables of relative positions are for maps of {_listed(set(sides))} tokens a side on "
            f"a grid of {grid}, and one size of windows is known"
        )
    decoder = any(name.startswith("mask_decoder.") for name in shapes)
    found = ModelSpec(
        name="derived",
        title="derived from a checkpoint",
        embed_dim=width,
        depth=depth,
        num_heads=width // tables[0][1],
        global_blocks=tuple(index for index, side in enumerate(sides) if side == grid),
        window_size=windows.pop() if windows else 14,
        image_size=grid * patch,
        patch_size=patch,
        channels=_shape(shapes, f"{_ENCODER}neck.0.weight", 4)[0],
        decoder=_decoder(shapes) if decoder else None,
        stretch_positions=stretch_positions,
        weights_note="the checkpoint that it was derived from",
    )
    return found


def _decoder(shapes: Shapes) -> DecoderSpec:
    return DecoderSpec(
        depth=_count(shapes, _LAYERS),
        mlp_dim=_shape(shapes, f"{_LAYERS}0.mlp.lin1.weight", 2)[0],
        score_dim=_shape(shapes, "mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
        hq=is_hq(shapes),
    )


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"it has no {name}")
    if len(shapes[name]) != dimensions or 0 in shapes[name]:
        raise ValueError(f"{name} has the shape {list(shapes[name])}")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many layers there are below a prefix, which numbers them from 0."""
    found = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    if not found or found != set(map(str, range(len(found)))):
        raise ValueError(f"{prefix}* is numbered {', '.join(sorted(found)[:5]) or 'nowhere'}")
    return len(found)


def _listed(sides: set[int]) -> str:
    return " and ".join(map(str, sorted(sides)))
