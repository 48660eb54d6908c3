"""What `inspect` found: a row per drawn method and block, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from structsam_export.inspect.merged_map import EDGE_SHARE, EdgeCount, MergedMap

#: What the numbers call an edge.
EDGE_TOKENS = f"edge tokens: the {EDGE_SHARE:.0%} of strongest gradient in the photo"


@dataclass(frozen=True)
class InspectRow:
    """One method in one block.

    Args:
        kind: `window` or `global`.
        rate: share of tokens that this block was asked to remove.
        windows: how many windows the block attends in; 1 when global.
        tokens: N of all windows, padding included.
        kept: M of all windows, padding included.
        real_tokens: N of the token grid.
        real_kept: slots of real tokens.
        photo: the same on the photo, and what happened to its edges.
        energy: which energy map is drawn, in words; None when the method has none.
        options: the method's own, where they were given.
        file: the picture.
        note: why there is nothing, such as a rate above the method's limit; else empty, and the
            numbers are there.
    """

    method: str
    block: int
    kind: str
    rate: float | None = None
    windows: int = 0
    tokens: int = 0
    kept: int = 0
    real_tokens: int = 0
    real_kept: int = 0
    photo: EdgeCount | None = None
    energy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    note: str = ""

    @classmethod
    def of(
        cls, method: str, block: int, kind: str, rate: float, found: MergedMap, **more: Any
    ) -> InspectRow:
        """Count a map."""
        return cls(
            method,
            block,
            kind,
            rate,
            found.windows,
            found.tokens,
            found.kept,
            found.group.size,
            found.real_kept,
            energy=found.energy_name or None,
            **more,
        )

    def caption(self) -> tuple[str, ...]:
        """Say method, rate, block, the tokens kept and what happened to edges."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        title = f"{self.method}{options}, block {self.block} ({self.kind})"
        if self.note or self.photo is None or self.rate is None:
            return (title,)  # the panel says why
        if self.windows > 1:
            kept = (
                f"kept {self.kept:,} of {self.tokens:,} in {self.windows} windows, "
                f"real tokens {self.real_kept:,} of {self.real_tokens:,}"
            )
        else:
            kept = f"kept {self.kept:,} of {self.tokens:,} tokens"
        if self.photo.tokens < self.real_tokens:
            kept += f"; on the photo {self.photo.kept:,} of {self.photo.tokens:,}"
        edges = f"left alone: {self.photo.unmerged:.0%} of the photo's tokens"
        if self.photo.unmerged_on_edges is not None:
            edges += f", {self.photo.unmerged_on_edges:.0%} of its edge tokens"
        energy = f"energy: {self.energy}" if self.energy else "no energy"
        return f"{title}, rate {self.rate:g}", kept, edges, energy

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        if self.note:
            return {
                "method": self.method, "block": self.block, "kind": self.kind, "note": self.note
            }  # fmt: skip
        facts = asdict(self)
        return {**facts, "file": str(self.file) if self.file else None, "note": None}


@dataclass(frozen=True)
class Inspection:
    """All that was drawn of one photo.

    Args:
        model: key of `structsam.models.MODELS`.
        weights: what the model was filled with, in words.
        image: file name of the photo.
        rate: as it was asked for.
        rows: the chosen blocks of every method.
        depth: all merging blocks of one method; empty when none could be drawn.
        files: every file written: pictures, then a sheet per block, then the sheet over depth.
    """

    model: str
    weights: str
    image: str
    rate: float | Sequence[float]
    rows: tuple[InspectRow, ...]
    depth: tuple[InspectRow, ...]
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "model": self.model,
            "weights": self.weights,
            "image": self.image,
            "rate": self.rate,
            "tokens": "of each method's own merged forward pass",
            "edges": f"{EDGE_TOKENS}, Sobel, grey levels per pixel",
            "rows": [row.to_dict() for row in self.rows],
            "depth": [row.to_dict() for row in self.depth],
            "files": [str(file) for file in self.files],
        }


def inspection_table(found: Inspection) -> Table:
    """Show every drawn method and block with the tokens kept and what happened to edges."""
    title = f"merging of {found.image} by {found.model}, {found.weights}"
    table = Table(title=escape(title))
    for column in ("method", "block", "real tokens kept"):
        table.add_column(column)
    for column in ("left alone", "of edge tokens", "gradient if merged", "if left alone"):
        table.add_column(column, justify="right")
    for row in found.rows + tuple(row for row in found.depth if row not in found.rows):
        block = f"{row.block} ({row.kind})"
        edges = row.photo
        if row.note or edges is None:
            table.add_row(row.method, block, escape(row.note))
            continue
        table.add_row(
            row.method,
            block,
            f"{row.real_kept:,} of {row.real_tokens:,}",
            f"{edges.unmerged:.1%}",
            _cell(edges.unmerged_on_edges, ".1%"),
            _cell(edges.gradient_merged, ".2f"),
            _cell(edges.gradient_unmerged, ".2f"),
        )
    table.caption = escape(
        f"left alone: sharing no slot; {EDGE_TOKENS}; gradient: of the photo, Sobel, grey levels "
        "per pixel"
    )
    return table


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
