"""Table, chart and files of `tune`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from structsam_export.bundle import atomic
from structsam_export.plot_style import COLORS, png_of, require_matplotlib
from structsam_export.tune.search import Measured
from structsam_export.tune.tune import TuneReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Levers that were moved -> marker and its name.
_LOOKS = {
    (): ("*", "stock and unmerged"),
    ("size",): ("s", "size alone"),
    ("merging",): ("o", "merging alone"),
    ("int8",): ("D", "INT8 alone"),
    ("size", "merging"): ("^", "size, merging"),
    ("size", "int8"): ("v", "size, INT8"),
    ("merging", "int8"): ("P", "merging, INT8"),
    ("size", "merging", "int8"): ("X", "size, merging, INT8"),
}
_FEW = 6  # held-out photos below which a difference may be luck


def save_report(report: TuneReport, out: Path) -> TuneReport:
    """Write `recipe.json`, `frontier.json` and `frontier.png`; return the report with their paths.

    A chosen stock encoder is what `export` makes at rate 0.
    """
    require_matplotlib()
    files = tuple(out / name for name in ("recipe.json", "frontier.json", "frontier.png"))
    atomic.write_bytes(files[2], png_of(figure_of(report), dpi=110))
    atomic.write_text(files[1], json.dumps(facts(report), indent=1) + "\n")
    report.recipe.save(files[0])
    return replace(report, files=files)


def figure_of(report: TuneReport) -> Figure:
    """Plot loss against latency: every point by the levers moved, the frontier, and the choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.subplots()
    best = report.frontier
    axes.plot([e.ms for e in best], [e.loss for e in best], color="0.7", label="frontier", zorder=1)
    for (levers, (marker, name)), color in zip(_LOOKS.items(), COLORS, strict=True):
        some = [each for each in report.found if each.point.levers == levers]
        if some:
            axes.plot([e.ms for e in some], [e.loss for e in some], marker, color=color, label=name)
    axes.plot(
        report.chosen.ms, report.chosen.loss, "o", markersize=16, markerfacecolor="none",
        color="black", label="chosen",
    )  # fmt: skip
    for each in report.frontier:
        axes.annotate(
            _short(report, each), (each.ms, each.loss), fontsize=7, rotation=20,
            textcoords="offset points", xytext=(5, 5),
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = _round_ticks(min(e.ms for e in report.found), max(e.ms for e in report.found))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_ylim(bottom=-0.003)
    axes.set_xlabel(f"ms per encoding, {report.backend}")
    axes.set_ylabel("loss: 1 - mask IoU with the unmerged model, search photos")
    axes.grid(color="0.92")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(f"{report.spec.name}: what every lever costs, and saves", fontsize=11)
    return figure


def frontier_table(report: TuneReport) -> Table:
    """Show the frontier, the single levers that are not on it, and which one was chosen."""
    table = Table(title=f"{report.spec.name} on {report.backend}: latency against loss")
    table.add_column("encoder", overflow="fold")
    for name in ("GMAC", "ms", "x stock", "loss", "held out"):
        table.add_column(name, justify="right")
    table.add_column("")
    stock = next(each.ms for each in report.found if each.point.stock)
    best = report.frontier
    for each in sorted(report.found, key=lambda each: each.ms):
        if each.held_out is None:
            continue
        notes = [] if each in best else ["beaten"]
        notes += ["chosen"] if each == report.chosen else []
        table.add_row(
            each.point.label(report.spec),
            f"{each.gmac:.1f}",
            f"{each.ms:.0f}",
            f"{stock / each.ms:.2f}",
            f"{each.loss:.4f}",
            f"{each.held_out:.4f}",
            ", ".join(notes),
            style="bold" if each == report.chosen else None,
        )
    table.caption = (
        "Loss: 1 - IoU of the masks of boxes round sure objects with those of the unmerged model "
        f"at {report.spec.image_size} pixels, mean of {report.photos[0]} search photos; held out: "
        f"of {report.photos[1]} that the search did not see. beaten: another is faster and loses "
        "no more."
    )
    return table


def verdict(report: TuneReport) -> str:
    """Say what was chosen, why, and how it stands beside the best single lever."""
    chosen, single = report.chosen, report.single
    told = (
        f"chosen, {report.limit.text}: {chosen.point.label(report.spec)}, {chosen.ms:.0f} ms, "
        f"loss {chosen.loss:.4f} ({chosen.held_out:.4f} on photos not seen)"
    )
    if isinstance(chosen.point.rate, tuple):
        told += f"; rates {' '.join(f'{rate:g}' for rate in chosen.point.rate)}"
    over = report.passed_over
    if over is not None:
        told += (
            f". On photos not seen it loses less than what the search had chosen, "
            f"{over.point.label(report.spec)}, {over.ms:.0f} ms ({over.held_out:.4f} there)"
        )
    elif single is None:
        told += ". No single lever is as fast"
    elif single.point != chosen.point:
        word = "as much" if single.held_out == chosen.held_out else "more"
        if (single.held_out or 0) < (chosen.held_out or 0):
            word = "LESS there, and too much on the search photos"
        told += (
            f". The best single lever that is no slower, {single.point.label(report.spec)}, "
            f"{single.ms:.0f} ms, loses {word} ({single.held_out:.4f} on photos not seen)"
        )
    few = report.photos[1]
    return told + (f" (fewer than {_FEW} such photos: it may be luck)" if few < _FEW else "")


def facts(report: TuneReport) -> dict[str, Any]:
    """Return a JSON-ready form."""
    return {
        "recipe": asdict(report.recipe),
        "sought": report.limit.text,
        "chosen": report.chosen.point.key,
        "single_lever": report.single and report.single.point.key,
        "passed_over": report.passed_over and report.passed_over.point.key,
        "backend": report.backend,
        "photos": {"search": report.photos[0], "held_out": report.photos[1]},
        "measured": [_facts(report, each) for each in report.found],
        "files": [str(file) for file in report.files],
    }


def _facts(report: TuneReport, each: Measured) -> dict[str, Any]:
    return {
        "encoder": each.point.key,
        "levers": list(each.point.levers),
        "gmac": round(each.gmac, 3),
        "milliseconds": round(each.ms, 3),
        "loss": each.loss,
        "held_out_loss": each.held_out,
        "on_frontier": each in report.frontier,
    }


def _short(report: TuneReport, each: Measured) -> str:
    return each.point.label(report.spec).replace(" pixels", "").replace("-fp32", "")


def _round_ticks(low: float, high: float) -> list[float]:
    steps = [m * 10**e for e in range(-2, 6) for m in (1, 2, 3, 5, 7)]
    return [step for step in steps if low * 0.9 <= step <= high * 1.1]
