"""What a spectrum study found: rows, `spectrum.csv`, `spectrum.json`, `spectrum.png`, a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from structsam_export.bundle import atomic
from structsam_export.plot_style import png_of, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = (
    "model", "weights", "graph", "method", "rate", "block", "kind", "tokens", "slots",
    "discrepancy", "dissimilarity", "note",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"
#: Deeper encoders get a mean per kind of block in the table; the files hold every block.
_MOST_BLOCKS_IN_TABLE = 12


@dataclass(frozen=True)
class BlockSpectrum:
    """One merging block.

    Args:
        index: block of the encoder.
        kind: `window` or `global`.
        tokens: N of one map, padding included.
        slots: M of one map.
        discrepancy: eq. 1, the mean over windows and images.
        dissimilarity: 1 - cosine inside slots, per token removed; the mean over windows and images.
    """

    index: int
    kind: str
    tokens: int
    slots: int
    discrepancy: float
    dissimilarity: float


@dataclass(frozen=True)
class SpectrumRow:
    """One method at one rate.

    Args:
        rate: share of tokens that was asked to be removed.
        blocks: the merging blocks, by index; empty when the method cannot do it.
        note: why not, such as `not available: cap 0.5`; else empty.
    """

    method: str
    rate: float
    blocks: tuple[BlockSpectrum, ...] = ()
    note: str = ""

    @property
    def encoder(self) -> float | None:
        """Sum over the blocks (eq. 2); None when there are none."""
        return sum(block.discrepancy for block in self.blocks) if self.blocks else None

    @property
    def dissimilarity(self) -> float | None:
        """Mean over the blocks of 1 - cosine inside slots; None when there are none."""
        values = [block.dissimilarity for block in self.blocks]
        return sum(values) / len(values) if values else None

    @property
    def kept(self) -> str:
        """Tokens kept, such as `97 of 196, 2047 of 4096`."""
        sizes = dict.fromkeys(f"{block.slots} of {block.tokens}" for block in self.blocks)
        return ", ".join(sizes)

    def mean(self, kind: str) -> float | None:
        """Mean over the blocks of a kind; None when there are none."""
        values = [block.discrepancy for block in self.blocks if block.kind == kind]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "method": self.method,
            "rate": self.rate,
            "tokens_kept": self.kept or None,
            "encoder_sum": self.encoder,
            "dissimilarity": self.dissimilarity,
            "blocks": [asdict(block) for block in self.blocks],
            "note": self.note or None,
        }


@dataclass(frozen=True)
class SpectrumReport:
    """A whole study.

    Args:
        model: key of `structsam.models.MODELS`.
        weights: what the model was filled with, in words.
        graph: key of `structsam.token_graphs.GRAPHS`.
        layers: as it was asked for.
        images: file names.
        rows: every method at every rate.
        files: what `save` wrote.
    """

    model: str
    weights: str
    graph: str
    layers: str
    images: tuple[str, ...]
    rows: tuple[SpectrumRow, ...]
    files: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "model": self.model,
            "weights": self.weights,
            "graph": self.graph,
            "norm": "l1 of sorted normalized Laplacian eigenvalues",
            "tokens": "of the stock model's forward pass, the same for every method",
            "averaged_over": "windows and images",
            "layers": self.layers,
            "images": list(self.images),
            "rows": [row.to_dict() for row in self.rows],
            "files": [str(file) for file in self.files],
        }


def save_report(report: SpectrumReport, out: Path) -> tuple[Path, ...]:
    """Write `spectrum.csv`, `spectrum.json` and `spectrum.png`; return their paths.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written.
    """
    require_matplotlib()
    names = ("spectrum.csv", "spectrum.json", "spectrum.png")
    table, facts, picture = files = tuple(out / name for name in names)
    told = {**report.to_dict(), "files": [file.name for file in files]}
    drawn = draw(report)  # whatever can fail comes before the first file
    atomic.write_text(table, _csv(report))
    atomic.write_bytes(picture, drawn)
    atomic.write_text(facts, json.dumps(told, indent=1) + "\n")
    return files


def _csv(report: SpectrumReport) -> str:
    """One line per block, and one with block `all` for the encoder's sum."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in report.rows:
        head = (report.model, report.weights, report.graph, row.method, row.rate)
        for b in row.blocks:
            found = repr(b.discrepancy), repr(b.dissimilarity)
            writer.writerow((*head, b.index, b.kind, b.tokens, b.slots, *found, ""))
        total = ["" if v is None else repr(v) for v in (row.encoder, row.dissimilarity)]
        writer.writerow((*head, "all", "", "", "", *total, row.note))
    return text.getvalue()


def draw(report: SpectrumReport) -> bytes:
    """Return the picture of `figure_of` as PNG; no window opens and no display is needed."""
    return png_of(figure_of(report), dpi=130)


def figure_of(report: SpectrumReport) -> Figure:
    """Plot the discrepancy of every block: a panel per rate, a line per method.

    Global blocks are shaded. The legend says the tokens kept and the encoder's sum, or why a
    method is missing.
    """
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(row.rate for row in report.rows))
    methods = list(dict.fromkeys(row.method for row in report.rows))
    figure = Figure(figsize=(max(6.4 * len(rates), 7.0), 4.6 + 0.2 * len(methods)))
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        _draw_rate(panel, [row for row in report.rows if row.rate == rate], methods)
        panel.set_title(f"rate {rate:g}")
        panel.set_xlabel("block (global blocks shaded)")
    panels[0].set_ylabel("spectral discrepancy (l1, eq. 1)")
    panels[0].set_ylim(bottom=0)  # once, and last: it ends the scaling that the panels share
    photos = f"{len(report.images)} image{'s' if len(report.images) != 1 else ''}"
    figure.suptitle(f"{report.model}, {report.weights}; {report.graph} graph, {photos}")
    figure.tight_layout()
    return figure


def _draw_rate(panel: Axes, rows: Sequence[SpectrumRow], methods: Sequence[str]) -> None:
    kinds = {block.index: block.kind for row in rows for block in row.blocks}
    for index, kind in kinds.items():
        if kind == "global":
            panel.axvspan(index - 0.5, index + 0.5, color="0.92", zorder=0)
    for row in rows:
        order = methods.index(row.method)
        label = f"{row.method}: {row.note or f'kept {row.kept}; sum {row.encoder:.3g}'}"
        panel.plot(
            [block.index for block in row.blocks],
            [block.discrepancy for block in row.blocks],
            marker=_MARKERS[order % len(_MARKERS)],
            markersize=5,
            color=f"C{order % 10}",
            linestyle="-" if order < 10 else "--",
            label=label,
        )
    if kinds:
        step = 1 if len(kinds) <= 16 else 2
        panel.set_xticks(sorted(kinds)[::step])
        panel.set_xlim(min(kinds) - 0.5, max(kinds) + 0.5)
    panel.grid(axis="y", color="0.85")
    panel.set_axisbelow(True)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False)


def spectrum_table(report: SpectrumReport) -> Table:
    """Show every method and rate with the tokens kept, the blocks and the encoder's sum."""
    indices = sorted({block.index for row in report.rows for block in row.blocks})
    per_block = len(indices) <= _MOST_BLOCKS_IN_TABLE
    title = f"spectral discrepancy: {report.model}, {report.weights}, {report.graph} graph"
    table = Table(title=escape(title))
    for column in ("method", "rate", "tokens kept"):
        table.add_column(column)
    for heading in [str(i) for i in indices] if per_block else ["window mean", "global mean"]:
        table.add_column(heading, justify="right")
    table.add_column("encoder sum", justify="right")
    table.add_column("1 - cos", justify="right")
    for row in report.rows:
        if per_block:
            found = {block.index: block.discrepancy for block in row.blocks}
            values = [found.get(index) for index in indices]
        else:
            values = [row.mean("window"), row.mean("global")]
        total = row.encoder, row.dissimilarity
        cells = ["" if value is None else f"{value:.3f}" for value in (*values, *total)]
        table.add_row(row.method, f"{row.rate:g}", escape(row.note or row.kept), *cells)
    photos = f"{len(report.images)} image{'s' if len(report.images) != 1 else ''}"
    table.caption = escape(
        f"l1 distance of sorted normalized Laplacian eigenvalues, mean over windows and {photos}; "
        "tokens of the unmerged model for every method. The graph joins tokens by cosine, so the "
        "distance follows 1 - cos inside slots (mean over blocks), which matching by cosine keeps "
        "small; where tokens lie it does not see"
    )
    return table
