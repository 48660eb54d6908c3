"""What `structsam-export flops` shows: one encoder block by block, or all methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.flops import encoder_flops
from structsam.flops_counts import BlockFlops, EncoderFlops
from structsam.methods import METHODS
from structsam.methods.base import RateAboveLimit
from structsam.models import ModelSpec

_MERGING = ("energy", "matching", "pooling")
_ATTENTION = ("qkv", "qk_av", "relative", "proj")
_CONVENTION = (
    "One multiply-add = 1, LayerNorm 5 per element (fvcore's convention). 'folded extra' is what "
    "the folded attention form executes beyond that count."
)


def compare_methods(
    spec: ModelSpec, placement: str = "attention", **choice: Any
) -> dict[str, EncoderFlops | str]:
    """Count every method with its default options, or say why it cannot do that.

    Args:
        placement: as in `encoder_flops`.
        choice: fields of `MergeConfig`, the same for all.

    Raises:
        UserError: no method at all can do it.
    """
    results: dict[str, EncoderFlops | str] = {}
    reasons = []
    for name in METHODS:
        try:
            config = MergeConfig.of(method=name, **choice)
            results[name] = encoder_flops(spec, config, placement)
        except UserError as error:
            reasons.append(error)
            results[name] = (
                f"above its limit {error.limit:g}"
                if isinstance(error, RateAboveLimit)
                else str(error)
            )
    if len(reasons) == len(results):
        raise reasons[0]
    return results


def kept_text(counted: EncoderFlops) -> str:
    """Say how many tokens the merging blocks keep: `window 97/196, global 2047/4096`."""
    sizes = (
        f"{block.kind} {'+'.join(str(tier.slots) for tier in block.tiers)}/{block.tokens}"
        for block in counted.blocks
        if block.rate
    )
    return ", ".join(dict.fromkeys(sizes)) or "all"


def flops_table(title: str, counted: EncoderFlops, unmerged: EncoderFlops) -> Table:
    """Show multiply-adds per block in GMAC, with the tokens kept beside them."""
    table = Table(title=f"encoder multiply-adds, GMAC: {title}")
    for column in ("block", "kind", "tokens kept"):
        table.add_column(column)
    columns = (*_ATTENTION, "mlp", "norm", *_MERGING)
    for column in (*columns, "total", "unmerged", "folded extra"):
        table.add_column(column, justify="right")
    for block, stock in zip(counted.blocks, unmerged.blocks, strict=True):
        table.add_row(
            str(block.index),
            block.kind,
            f"{_slots(block)} of {block.tokens} ({100 * block.kept:.1f} %)",
            *(f"{getattr(block, column) / 1e9:.3f}" for column in columns),
            f"{block.total / 1e9:.3f}",
            f"{stock.total / 1e9:.3f}",
            f"{block.folded_extra / 1e9:.3f}",
        )
    blank = [""] * len(columns)
    patch, neck = counted.patch_embedding / 1e9, counted.neck / 1e9
    table.add_row("patch embedding", "", "", *blank, f"{patch:.3f}", f"{patch:.3f}", "")
    table.add_row("neck", "", "", *blank, f"{neck:.3f}", f"{neck:.3f}", "", end_section=True)
    table.add_row(
        "all",
        "",
        "",
        *(f"{counted.sum(column) / 1e9:.2f}" for column in columns),
        f"{counted.gmac:.2f}",
        f"{unmerged.gmac:.2f}",
        f"{counted.folded_extra / 1e9:.2f}",
        style="bold",
    )
    table.caption = _CONVENTION
    if counted.skipped:
        table.caption += (
            f" Of the total {counted.skipped / 1e9:.2f} GMAC are linear layers on padding: not run."
        )
    return table


def methods_table(title: str, results: Mapping[str, EncoderFlops | str]) -> Table:
    """Show one line per method, in GMAC: tokens kept, the parts that differ, and the total."""
    table = Table(title=f"encoder multiply-adds, GMAC: {title}")
    for column in ("method", "tokens kept"):
        table.add_column(column)
    for column in ("attention", *_MERGING, "the rest", "total", "folded extra"):
        table.add_column(column, justify="right")
    for name, counted in results.items():
        if isinstance(counted, str):
            table.add_row(name, escape(counted))
            continue
        attention = sum(counted.sum(part) for part in _ATTENTION)
        rest = counted.total - attention - counted.overhead
        table.add_row(
            name,
            kept_text(counted),
            f"{attention / 1e9:.2f}",
            *(f"{counted.sum(part) / 1e9:.3f}" for part in _MERGING),
            f"{rest / 1e9:.2f}",
            f"{counted.gmac:.2f}",
            f"{counted.folded_extra / 1e9:.2f}",
        )
    table.caption = _CONVENTION
    return table


def _slots(block: BlockFlops) -> str:
    """How many tokens one map keeps: `97`, or `8 x 148, 17 x 73` in tiers."""
    if len(block.tiers) == 1:
        return str(block.slots)
    return ", ".join(f"{tier.maps} x {tier.slots}" for tier in block.tiers)
