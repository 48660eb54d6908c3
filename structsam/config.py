"""MergeConfig: which method merges how much in which blocks. Validated once, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from structsam.errors import UserError
from structsam.methods import find_method
from structsam.methods.base import check_rate

LAYER_SETS = ("all", "global", "window")
ATTENTION_FORMS = ("folded", "dense")


@dataclass(frozen=True)
class MergeConfig:
    """What `apply_merging` puts into an encoder.

    Args:
        method: key of `structsam.methods.METHODS`.
        rate: share of every map's tokens to remove; one number, or one per block of the encoder.
        layers: `all`, `global`, `window`, or block indices.
        attention: `folded` (relative positions inside the product) or `dense` (explicit bias).

    Raises:
        UserError: unknown name, or a rate outside the method's range.
    """

    method: str = "structsam"
    rate: float | tuple[float, ...] = 0.5
    layers: str | tuple[int, ...] = "all"
    attention: str = "folded"

    def __post_init__(self) -> None:
        method = find_method(self.method)
        for rate in self.rate if isinstance(self.rate, tuple) else (self.rate,):
            check_rate(rate, method.name, method.max_rate)
        if not _are_layers(self.layers):
            raise UserError(
                f"unknown layers {self.layers!r}. Use one of: {', '.join(LAYER_SETS)}, "
                "or block indices such as 7,8,9"
            )
        if self.attention not in ATTENTION_FORMS:
            raise UserError(
                f"unknown attention {self.attention!r}. Use one of: {', '.join(ATTENTION_FORMS)}"
            )

    @classmethod
    def of(cls, method: str, rate: Any, layers: Any, attention: str) -> MergeConfig:
        """Make a configuration from what callers pass: lists, arrays and ranges become tuples."""
        return cls(method, _frozen(rate), _frozen(layers), attention)

    def block_rates(self, is_global: Sequence[bool]) -> tuple[float, ...]:
        """Return the rate of every block, 0 where nothing is merged.

        Args:
            is_global: for every block whether it attends over the whole grid.

        Raises:
            UserError: a block index or the number of rates does not fit the encoder.
        """
        depth = len(is_global)
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,) * depth
        if len(rates) != depth:
            raise UserError(f"{len(rates)} rates were given for an encoder of {depth} blocks")
        chosen = self._chosen_blocks(is_global)
        return tuple(float(rate) if i in chosen else 0.0 for i, rate in enumerate(rates))

    def _chosen_blocks(self, is_global: Sequence[bool]) -> set[int]:
        if isinstance(self.layers, str):
            wanted = {"all": (True, False), "global": (True,), "window": (False,)}[self.layers]
            return {i for i, flag in enumerate(is_global) if flag in wanted}
        outside = [i for i in self.layers if not 0 <= i < len(is_global)]
        if outside:
            raise UserError(
                f"layer {outside[0]} does not exist: the encoder has blocks 0 to "
                f"{len(is_global) - 1}"
            )
        return set(self.layers)


def _frozen(value: Any) -> Any:
    """Make a sequence a tuple; anything else is left for the checks to judge."""
    if hasattr(value, "tolist"):  # numpy and torch numbers, arrays and tensors
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple, range)) else value


def _are_layers(layers: object) -> bool:
    if isinstance(layers, str):
        return layers in LAYER_SETS
    return (
        isinstance(layers, tuple) and bool(layers) and all(type(index) is int for index in layers)
    )


def parse_layers(text: str) -> str | tuple[int, ...]:
    """Read `all`, `global`, `window` or `7,8,9` as typed on a command line.

    Raises:
        UserError: anything else.
    """
    if text in LAYER_SETS:
        return text
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(
            f"unknown layers {text!r}. Use one of: {', '.join(LAYER_SETS)}, "
            "or block indices such as 7,8,9"
        ) from None
