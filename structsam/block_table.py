"""What every block of an encoder merges: one table, read by all that counts, installs or tells it.

A `MergeConfig` says what is wanted; the table says what that is for one geometry of blocks, in
numbers that are fixed before the first tensor operation. What does not fit is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.merging.window_group import WindowGroup
from structsam.methods import find_method, rate_limit
from structsam.methods.base import MergeMethod


@dataclass(frozen=True)
class BlockRow:
    """One block.

    Args:
        index: its place in the encoder.
        grid: (H, W) of a map: of a window, or of the whole image.
        is_global: it attends over the whole image, which is one map.
        maps: token maps of an image, each merged by itself.
        rate: share of the tokens that is asked to go; 0 keeps all.
        tiers: methods and for how many maps; several where a prompt box orders the windows; none
            where all tokens are kept.
        stage: indices of the blocks that merge once together, this one among them; itself alone
            but in placement `stage`.
    """

    index: int
    grid: tuple[int, int]
    is_global: bool
    maps: int
    rate: float
    tiers: tuple[WindowGroup, ...]
    stage: tuple[int, ...]

    @property
    def kind(self) -> str:
        """`global` or `window`."""
        return "global" if self.is_global else "window"

    @property
    def tokens(self) -> int:
        """N of one map, padding included."""
        return self.grid[0] * self.grid[1]

    @property
    def plans(self) -> bool:
        """Whether this block decides what merges: the first of its stage, where anything does."""
        return bool(self.tiers) and self.stage[0] == self.index

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry; in tiers `slots` and `rate` are means over the maps."""
        slots = [tier.method.num_slots * tier.windows for tier in self.tiers]
        rates = [tier.method.rate * tier.windows for tier in self.tiers]
        entry: dict[str, Any] = {
            "index": self.index,
            "kind": self.kind,
            "grid": list(self.grid),
            "tokens": self.tokens,
            "slots": round(sum(slots) / self.maps) if self.tiers else self.tokens,
            "rate": round(sum(rates) / self.maps, 6),
        }
        if len(self.tiers) > 1:
            entry["tiers"] = [
                {"rate": t.method.rate, "slots": t.method.num_slots, "windows": t.windows}
                for t in self.tiers
            ]
        return entry


@lru_cache(maxsize=256)
def block_table(
    config: MergeConfig, grid: tuple[int, int], window_sizes: tuple[int, ...]
) -> tuple[BlockRow, ...]:
    """Return what every block merges; computed once for a configuration and a geometry.

    Args:
        grid: (H, W) of the image's tokens.
        window_sizes: side of the windows of every block; 0 for a block that attends over the whole
            grid.

    Raises:
        UserError: an index or number of rates that is not the encoder's, or a rate that the method
            cannot do on such a map.
    """
    rates = _rates(config, window_sizes)
    table = []
    for stage in _stages(config, window_sizes, rates):
        for index in stage:
            side, rate = window_sizes[index], rates[index]
            own = (side, side) if side else grid
            maps = -(-grid[0] // own[0]) * -(-grid[1] // own[1])
            tiers = tuple(
                WindowGroup(_method(config, own, tier_rate, index, len(rates)), count)
                for tier_rate, count in _tiers(config, rate, maps)
                if rate
            )
            table.append(BlockRow(index, own, not side, maps, rate, tiers, stage))
    return tuple(table)


def _rates(config: MergeConfig, window_sizes: Sequence[int]) -> list[float]:
    """The rate of every block, 0 where nothing is merged."""
    depth = len(window_sizes)
    rates = config.rate if isinstance(config.rate, tuple) else (config.rate,) * depth
    if len(rates) != depth:
        raise UserError(f"{len(rates)} rates were given for an encoder of {depth} blocks")
    chosen = _chosen_blocks(config, window_sizes)
    return [float(rate) if i in chosen else 0.0 for i, rate in enumerate(rates)]


def _chosen_blocks(config: MergeConfig, window_sizes: Sequence[int]) -> set[int]:
    depth = len(window_sizes)
    if isinstance(config.layers, str):
        wanted = {"all": (True, False), "global": (True,), "window": (False,)}[config.layers]
        return {i for i, side in enumerate(window_sizes) if (side == 0) in wanted}
    outside = [i for i in config.layers if not 0 <= i < depth]
    if outside:
        raise UserError(
            f"layer {outside[0]} does not exist: the encoder has blocks 0 to {depth - 1}"
        )
    return set(config.layers)


def _stages(
    config: MergeConfig, window_sizes: Sequence[int], rates: Sequence[float]
) -> list[tuple[int, ...]]:
    """Group the blocks that share a plan: runs of one kind and one rate, or single blocks.

    Only placement `stage` makes runs, and only of blocks that merge.
    """
    runs: list[tuple[int, ...]] = []
    for index, kind in enumerate(zip(window_sizes, rates, strict=True)):
        before = (window_sizes[index - 1], rates[index - 1]) if index else None
        if config.placement == "stage" and rates[index] and kind == before:
            runs[-1] += (index,)
        else:
            runs.append((index,))
    return runs


def _tiers(config: MergeConfig, rate: float, maps: int) -> tuple[tuple[float, int], ...]:
    """Return (rate, maps) of the tiers of a block whose maps merge at `rate` on average.

    A third of the maps, those that the prompt box covers most, merge at half the rate; the others
    at more, as far as the method's limit allows. One tier when nothing is prompt-aware.
    """
    inside = maps // 3
    if config.prompt_aware != "windows" or not inside or not rate:
        return ((rate, maps),)
    limit = rate_limit(find_method(config.method), dict(config.options))
    outside = maps - inside
    low = max(rate / 2, (maps * rate - outside * limit) / inside)
    high = min(limit, (maps * rate - inside * low) / outside)
    return ((low, inside), (high, outside))


def _method(
    config: MergeConfig, grid: tuple[int, int], rate: float, layer: int, depth: int
) -> MergeMethod:
    method = find_method(config.method)
    return method(grid, rate, config.align, layer, depth, **dict(config.options))
