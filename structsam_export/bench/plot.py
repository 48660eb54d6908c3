"""Picture of a benchmark: quality against latency where an evaluation exists, else latency."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from structsam_export.plot_style import COLORS, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from structsam_export.bench.report import BenchReport, BenchRow

_MARKERS = {"stock": "s", "unmerged": "D", "bundle": "o"}


def draw_benchmark(report: BenchReport) -> bytes | None:
    """Return a PNG of the measured encoders; None where nothing was measured.

    Raises:
        UserError: matplotlib is missing.
    """
    rows = [row for row in report.rows if row.part == "encoder" and row.median_ms is not None]
    if not rows:
        return None
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judged = [row for row in rows if row.quality.get("value") is not None]
    height = 4.6 if judged else 1.3 + 0.32 * len(rows)
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    if judged:
        _draw_quality(axes, judged)
    else:
        _draw_latency(axes, rows)
    machine = report.hardware.get("gpu") or report.hardware.get("cpu") or ""
    axes.set_title(f"{machine}, {report.date[:10]}", fontsize=10)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _draw_quality(axes: Axes, rows: list[BenchRow]) -> None:
    """A point per row: latency across with p10 to p90, mean quality up with its interval."""
    for order, row in enumerate(rows):
        quality = row.quality
        assert row.median_ms is not None and row.p10_ms is not None and row.p90_ms is not None
        value = 100 * quality["value"]
        low, high = (100 * (quality[end] or quality["value"]) for end in ("low", "high"))
        axes.errorbar(
            [row.median_ms], [value],
            xerr=[[row.median_ms - row.p10_ms], [row.p90_ms - row.median_ms]],
            yerr=[[max(value - low, 0)], [max(high - value, 0)]],
            marker=_MARKERS[row.role], color=COLORS[order % len(COLORS)], capsize=2.5,
            elinewidth=1, linestyle="", label=f"{row.bundle}, {row.backend}",
        )  # fmt: skip
    axes.set_xlabel("encoder, median (ms); bars: p10 to p90")
    axes.set_ylabel(f"{rows[0].quality['title']} (%); bars: 95 % interval")
    axes.grid(color="#e3e7ee", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def _draw_latency(axes: Axes, rows: list[BenchRow]) -> None:
    """A bar per row with its p10 to p90."""
    names = [f"{row.bundle}, {row.backend}" for row in rows]
    medians = [row.median_ms or 0.0 for row in rows]
    below = [max(m - (row.p10_ms or m), 0) for m, row in zip(medians, rows, strict=True)]
    above = [max((row.p90_ms or m) - m, 0) for m, row in zip(medians, rows, strict=True)]
    places = list(range(len(rows)))
    colors = [COLORS[0] if row.role == "bundle" else COLORS[-1] for row in rows]
    axes.barh(places, medians, xerr=[below, above], color=colors, capsize=2.5, height=0.65)
    for place, row in zip(places, rows, strict=True):
        factor = row.speedup.get("unmerged")
        faster = f"  {factor:.2f} x unmerged" if factor and row.role == "bundle" else ""
        axes.text(row.p90_ms or 0, place, f" {row.median_ms:.4g}{faster}", va="center", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(medians))
    axes.set_xlabel("encoder, median (ms); bars: p10 to p90")
