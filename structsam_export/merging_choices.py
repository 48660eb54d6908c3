"""Combinations of methods, rates, layers and placements that `evaluate` and `bench` go through."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec


def merge_configs(
    spec: ModelSpec,
    methods: Sequence[str],
    rates: Sequence[float],
    layers: Sequence[str],
    placements: Sequence[str] = ("attention",),
    **more: Any,
) -> tuple[list[MergeConfig], list[dict[str, str]]]:
    """Return every combination, rate 0 left out: that is the unmerged model.

    Args:
        more: further fields of `MergeConfig`, the same for all.

    Returns:
        the configurations, and those that the method or model cannot do, with the reason.

    Raises:
        UserError: none of them can be done.
    """
    from structsam.block_table import block_table
    from structsam.config import MergeConfig, parse_layers

    configs, left_out = [], []
    refused: UserError | None = None
    for method, where, placement, rate in itertools.product(methods, layers, placements, rates):
        if not rate:
            continue
        asked: dict[str, Any] = {
            "method": method,
            "rate": rate,
            "layers": where,
            "placement": placement,
        }
        try:
            config = MergeConfig.of(**asked | more | {"layers": parse_layers(where)})
            block_table(config, spec.grid, spec.window_sizes)
            configs.append(config)
        except UserError as error:
            refused = error
            left_out.append({"name": label_of(asked), "reason": str(error)})
    if refused and not configs:
        raise refused
    return configs, left_out


def label_of(merging: Mapping[str, Any]) -> str:
    """Say what merges in a few words, such as `structsam 0.5, global, block, edge=central`."""
    rate = merging["rate"]
    words = [
        f"{merging['method']} {rate:g}" if isinstance(rate, int | float) else "rates per block"
    ]
    layers = merging["layers"]
    if layers != "all":
        words.append(layers if isinstance(layers, str) else "layers " + _ranges(layers))
    if merging.get("placement", "attention") != "attention":
        words.append(merging["placement"])
    words += [f"{name}={value}" for name, value in (merging.get("options") or {}).items()]
    words += ["proportional"] if merging.get("proportional") else []
    words += [f"box {merging['prompt_aware']}"] if merging.get("prompt_aware") else []
    return ", ".join(words)


def _ranges(blocks: Sequence[int]) -> str:
    blocks = sorted(blocks)
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]} to {blocks[-1]}"
    return " ".join(map(str, blocks))
