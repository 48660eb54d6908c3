"""Points of the search: size, method, placement, rates and precision; and which lie on a grid.

A new lever is a field here, a value in `grid`, and a line in `Point.levers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from structsam.errors import UserError

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

SIZES = (1024, 896, 768, 640, 512)
RATES = (0.25, 0.5, 0.7)
PLACEMENTS = ("attention", "block", "stage")
#: Tried when nothing is said: `block` costs what `stage` costs and was never better.
USUAL_PLACEMENTS = ("attention", "stage")
#: Floats of a runtime -> its INT8.
INT8_OF = {"fp32": "int8-fp32", "fp16": "int8"}


@dataclass(frozen=True)
class Point:
    """One encoder.

    Args:
        image_size: side of the input in pixels; None for the trained one.
        rate: share of tokens to remove, everywhere or per block; 0 merges nothing.
        stock: the export of the segment-anything package as it is, beside which all stand.
        method: other than that of the search, with its usual options.
    """

    image_size: int | None = None
    rate: float | tuple[float, ...] = 0.0
    placement: str = "attention"
    precision: str = "fp32"
    stock: bool = False
    method: str | None = None

    @property
    def levers(self) -> tuple[str, ...]:
        """What was moved: `size`, `merging`, `int8`; nothing for stock and the unmerged one."""
        moved = (
            ("size", self.image_size is not None),
            ("merging", self.merges),
            ("int8", self.precision.startswith("int8")),
        )
        return tuple(name for name, yes in moved if yes)

    @property
    def merges(self) -> bool:
        """Whether any block merges."""
        return any(self.rate) if isinstance(self.rate, tuple) else bool(self.rate)

    @property
    def unquantized(self) -> Point:
        """The same in floats."""
        floats = {int8: floats for floats, int8 in INT8_OF.items()}
        return replace(self, precision=floats.get(self.precision, self.precision))

    @property
    def quantized(self) -> Point:
        """The same in INT8."""
        return replace(self, precision=INT8_OF.get(self.precision, self.precision))

    @property
    def key(self) -> str:
        """What tells it apart in a record: letters, digits, `-`, `.` and `_`."""
        if self.stock:
            return "stock"
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,)
        merging = f"{self.placement}-{'_'.join(f'{rate:g}' for rate in rates)}"
        if self.method:
            merging = f"{self.method}-{merging}"
        words = (str(self.image_size or "trained"), merging if self.merges else "unmerged")
        return "-".join((*words, self.precision))

    def label(self, spec: ModelSpec) -> str:
        """Say it in a few words: `768 pixels, stage 0.5, int8-fp32`."""
        if self.stock:
            return "stock"
        words = [f"{self.image_size or spec.image_size} pixels"]
        if self.merges:
            mixed = isinstance(self.rate, tuple)
            merging = f"{self.placement} {'per block' if mixed else format(self.rate, 'g')}"
            words.append(f"{self.method} {merging}" if self.method else merging)
        return ", ".join([*words, self.precision])

    def config(self, base: MergeConfig) -> MergeConfig:
        """Return the merging: method and options of `base`, or another method as it is."""
        if self.method:
            base = replace(base, method=self.method, options=())
        return replace(base, rate=self.rate, placement=self.placement)

    def spec(self, trained: ModelSpec) -> ModelSpec:
        """Return the model at this size; raises `UserError` for a size that cannot be."""
        from structsam.models.image_size import resized

        return resized(trained, self.image_size, "native")


def sizes_below(spec: ModelSpec, sizes: Sequence[int] = SIZES) -> list[int | None]:
    """Return the trained size, as None, and those of `sizes` that are smaller."""
    return [None, *(size for size in sorted(set(sizes), reverse=True) if size < spec.image_size)]


def grid(
    spec: ModelSpec,
    base: MergeConfig,
    sizes: Sequence[int | None],
    placements: Sequence[str] = PLACEMENTS,
    rates: Sequence[float] = RATES,
    precision: str = "fp32",
    methods: Sequence[str] = (),
) -> list[Point]:
    """Return every combination in floats that methods and model can do, unmerged ones first.

    Args:
        methods: to try beside that of `base`.

    Raises:
        UserError: a size that the model cannot have, or no way to merge at all.
    """
    unmerged = [Point(size, precision=precision) for size in sizes]
    for point in unmerged:
        point.spec(spec)
    merged, refusal = [], UserError("no rate to merge with. Give one above 0")
    for method, placement in product((None, *methods), placements):
        for rate in (rate for rate in rates if rate):
            for size in sizes:
                point = Point(size, rate, placement, precision, method=method)
                try:
                    require_possible(point, spec, base)
                    merged.append(point)
                except UserError as error:
                    refusal = error
    if not merged:
        raise refusal
    return unmerged + merged


def require_possible(point: Point, spec: ModelSpec, base: MergeConfig) -> None:
    """Raise a `UserError` where the method cannot do this rate at this size."""
    from structsam.block_table import block_table

    sized = point.spec(spec)
    block_table(point.config(base), sized.grid, sized.window_sizes)


def gmac(point: Point, spec: ModelSpec, base: MergeConfig) -> float:
    """Return the multiply-adds of the encoder / 10^9."""
    from structsam.flops import encoder_flops, unmerged_flops

    sized = point.spec(spec)
    if not point.merges:
        return unmerged_flops(sized).total / 1e9
    return encoder_flops(sized, point.config(base)).total / 1e9
