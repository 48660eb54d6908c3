"""Multiply-adds of SAM's image encoder with merging inside, counted from the geometry alone.

Convention (fvcore's, and the papers'): one multiply-add is one unit, LayerNorm costs 5 units per
element, bilinear resizing 4, and softmax, GELU, additions, comparisons, gathers and the neck's
LayerNorm2d cost nothing. The neck's count holds SAM-HQ's transposed convolutions as well.
Units are counted for one image. The merge step is counted in three parts, see `MergeCost`.

Letters: N tokens and M slots of one map, C channels, h heads of d channels, H W grid of one map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from structsam.block_table import BlockRow, block_table
from structsam.config import PLACEMENTS as OUR_PLACEMENTS
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.flops_counts import BlockFlops, EncoderFlops, TierFlops
from structsam.merging.attention_forms import FORMS, folded_channels, read_forms
from structsam.methods.base import MergeMethod
from structsam.methods.cost import MergeCost
from structsam.models.spec import ModelSpec

_NORM_UNITS = 5
_BILINEAR_UNITS = 4

#: For counting only: merging as the code of S. Xie's thesis does it, which scatters instead of
#: multiplying with one-hot matrices, and projects all tokens because it unmerges first.
THESIS = "thesis"
PLACEMENTS = (*OUR_PLACEMENTS, THESIS)


def encoder_flops(
    spec: ModelSpec, config: MergeConfig, placement: str | None = None
) -> EncoderFlops:
    """Count an encoder's multiply-adds; by default as this package runs it.

    The thesis' code removes `int(rate * N)` tokens, has an explicit bias instead of the folded
    form, and knows no `align`.

    Args:
        placement: one of `PLACEMENTS`; None for that of `config`.

    Raises:
        UserError: unknown placement, or the configuration does not fit the model or placement.
    """
    placement = placement or config.placement
    if placement not in PLACEMENTS:
        raise UserError(f"unknown placement {placement!r}. Use one of: {', '.join(PLACEMENTS)}")
    if placement != THESIS:
        config = replace(config, placement=placement)
    if placement == THESIS and config.align > 1:
        raise UserError("the thesis' code has no align. Use `placement='attention'`, or no align")
    table = block_table(config, spec.grid, spec.window_sizes)
    height, width = spec.grid
    tokens, channels = height * width, spec.embed_dim
    pixels = 3 * spec.patch_size**2
    neck = tokens * (channels * spec.channels + 9 * spec.channels**2)  # 1x1, then 3x3 convolution
    if spec.embedding_grid != spec.grid:
        neck += _BILINEAR_UNITS * spec.channels * spec.embedding_grid[0] * spec.embedding_grid[1]
    if spec.hq:
        neck += _hq_features(spec)
    return EncoderFlops(
        model=spec.label,
        method=config.method if any(row.tiers for row in table) else "none",
        attention=_told(config.attention) if placement != THESIS else "dense",
        placement=placement,
        patch_embedding=tokens * channels * pixels,
        neck=neck,
        blocks=tuple(_block(spec, config, placement, row) for row in table),
    )


def unmerged_flops(spec: ModelSpec) -> EncoderFlops:
    """Count the stock encoder."""
    return encoder_flops(spec, MergeConfig(rate=0.0, attention="dense"))


def _hq_features(spec: ModelSpec) -> int:
    """SAM-HQ: embedding and early features to four times their sides, in two steps each."""
    height, width = spec.embedding_grid
    tokens, out = height * width, spec.channels // 8
    units = 0
    for channels, hidden in (
        (spec.channels, spec.channels // 4),
        (spec.embed_dim, spec.channels),
    ):
        units += 4 * tokens * channels * hidden + 16 * tokens * hidden * out
    if spec.embedding_grid != spec.grid:
        units += _BILINEAR_UNITS * spec.embed_dim * tokens
    return units


def _block(spec: ModelSpec, config: MergeConfig, placement: str, row: BlockRow) -> BlockFlops:
    height, width = spec.grid
    tiers = [
        _tier(spec, config, placement, row, tier.method, tier.windows) for tier in row.tiers
    ] or [_tier(spec, config, placement, row, None, row.maps)]
    units = {part: sum(tier.units[part] for tier in tiers) for part in tiers[0].units}
    pixels, channels = height * width, spec.embed_dim
    rows = sum(tier.counts.maps * tier.counts.slots for tier in tiers)
    in_mlp = rows if row.tiers and placement in ("block", "stage") else pixels
    normed = 2 * pixels
    if row.tiers and placement == "stage":  # its first norm also sees all tokens, to plan
        normed = 2 * rows + (pixels if row.plans else 0)
    if row.tiers and placement == "block":
        units["pooling"] *= 2  # the MLP's input is merged as well
    if row.tiers and not row.plans:
        units |= {"energy": 0, "matching": 0, "pooling": 0}
    padding = sum(tier.padding for tier in tiers)
    if placement in ("block", "stage"):
        units["skipped"] += 8 * padding * channels**2
    if placement == "stage":
        units["skipped"] += _NORM_UNITS * 2 * padding * channels
    run = in_mlp - (padding if placement in ("block", "stage") else 0)
    units["widest"] = max(units["widest"], 4 * run * channels)
    mlp_traffic = run * 10 * channels  # C, 4C, 4C and C
    units["traffic"] += mlp_traffic
    return BlockFlops(
        index=row.index,
        kind=row.kind,
        rate=row.rate,
        maps=row.maps,
        tokens=row.tokens,
        tiers=tuple(tier.counts for tier in tiers),
        mlp=8 * in_mlp * channels**2,
        mlp_traffic=mlp_traffic,
        plans=row.plans,
        norm=_NORM_UNITS * normed * channels,
        **units,
    )


@dataclass(frozen=True)
class _Tier:
    """Attention and merging of one tier: counts, and multiply-adds or elements of all its maps.

    Args:
        padding: slots of all maps that linear layers leave out.
    """

    counts: TierFlops
    units: dict[str, int]
    padding: int


def _tier(
    spec: ModelSpec,
    config: MergeConfig,
    placement: str,
    row: BlockRow,
    method: MergeMethod | None,
    maps: int,
) -> _Tier:
    channels, heads, dim = spec.embed_dim, spec.num_heads, spec.head_dim
    tokens = row.tokens
    slots, stands_on, cost, padding = tokens, row.grid, MergeCost(), 0
    if method is not None:
        slots = _slots(method, placement)
        stands_on = method.slot_grid or row.grid
        cost = method.cost(channels, channels if method.metric == "all" else dim)
        if placement != THESIS and config.prompt_aware != "windows":
            padding = sum(method.padding_slots_of_maps(spec.grid) or ())
    rows = maps * slots
    logits = heads * maps * slots**2
    form = FORMS["dense" if placement == THESIS else read_forms(config.attention)[row.kind]]
    extra = (
        folded_channels(stands_on, dim, config.proportional and method is not None)
        if form.folded
        else 0
    )
    of_values = extra if form.padded else 0
    mask = 0 if form.folded or placement == THESIS else 2 * logits  # written and read
    projected = maps * tokens if placement == THESIS else rows
    units = {
        "qkv": 3 * rows * channels**2,
        "qk_av": 2 * logits * dim,
        "relative": rows * channels * sum(stands_on),
        "proj": projected * channels**2,
        "energy": maps * cost.energy,
        "matching": maps * cost.matching,
        "pooling": 0 if placement == THESIS else maps * cost.pooling,
        "folded_extra": logits * (extra + of_values),
        # all padding is one row of qkv
        "skipped": (3 * max(padding - 1, 0) + padding) * channels**2,
        "logits": logits,
        "mask": mask,
        "widest": 3 * rows * channels,
        # qkv reads C and writes 3C; attention reads 3C and writes C, and q and k grow by `extra`,
        # v and the result by `of_values`; the mask; the projection C and C
        "traffic": rows * (8 * channels + 2 * heads * (extra + of_values))
        + mask
        + projected * 2 * channels
        - padding * 6 * channels,
    }
    rate = method.rate if method is not None else 0.0
    return _Tier(TierFlops(rate, maps, slots), units, padding)


def _told(attention: str) -> str:
    """The form that runs in all blocks, or what was asked for where kinds differ."""
    forms = set(read_forms(attention).values())
    return forms.pop() if len(forms) == 1 else attention


def _slots(method: MergeMethod, placement: str) -> int:
    if placement == THESIS:
        return method.num_tokens - method.num_removed_in_thesis
    return method.num_slots
