#!/usr/bin/env python3
"""The tables and charts of `frontier_study.sh`: OUT/frontier.md and OUT/frontier-CHAPTER.png.

    python scripts/frontier_tables.py OUT

Every folder of results below OUT is one chapter: all points against the unmerged model at the
trained size, paired, with 95 % bootstrap intervals over images; then each set by itself, worst
first. A chart shows the points that no other beats in both GMAC and the measure as a line. Points
that were measured in INT8, too, have it beside FP32, and a chapter says how far the two are apart.
Where latency was measured it is a chapter of its own, with a chart for every runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fidelity_tables import by_set, main_table
from frontier_int8 import int8_chapter, is_int8, with_int8
from frontier_latency import TITLES, Latencies, latency_table, of_backend, read_latencies

from structsam.errors import UserError
from structsam.evaluation.bootstrap import Estimate
from structsam.evaluation.summary import RunSummary, Summary, summarise
from structsam_export.bundle.atomic import write_bytes, write_text
from structsam_export.plot_style import png_of

FOLDERS = {
    "box": "Box prompts", "click": "One click",
    "int8-box": "INT8 linear layers, box prompts", "int8-click": "INT8 linear layers, one click",
    "large-box": "Large photos, box prompts: the truth is the unmerged model's mask at 1024",
    "large-click": "Large photos, one click",
    "int8-large-box": "INT8 linear layers, large photos, box prompts",
    "int8-large-click": "INT8 linear layers, large photos, one click",
}  # fmt: skip
#: What is drawn up: (title, how to read it of a run); points, higher is better.
MEASURES = ("mIoU", "boundary IoU", "agreement")
SIZE_COLORS = {1024: "C0", 896: "C2", 768: "C1", 640: "C3", 512: "C4"}
#: Of StructSAM, then of any other method.
MARKERS = {"attention": ("o", "^"), "stage": ("s", "D")}


def size_of(run: RunSummary) -> int:
    return int(run.facts.get("image_size") or 1024)


def measured(run: RunSummary, measure: str) -> Estimate | None:
    """Return the difference to the baseline in shares; of agreement, 0 is the same mask."""
    if measure == "agreement":
        moved = run.disagreement
        if moved is None or moved.value is None:
            return None
        low = None if moved.high is None else -moved.high
        high = None if moved.low is None else -moved.low
        return Estimate(-moved.value, low, high, moved.images, moved.masks)
    metric = run.metrics.get("iou" if measure == "mIoU" else "boundary_iou")
    return None if metric is None else metric.difference


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no cheaper one reaches, by cost.

    >>> frontier([(3, 1), (1, -2), (2, -3), (4, 0)])
    [(1, -2), (3, 1)]
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


@dataclass(frozen=True)
class Cost:
    """What a chart has across: of a run its value, or None where it has none."""

    title: str
    of: Callable[[RunSummary], float | None]


GMAC = Cost("encoder, GMAC", lambda run: float(run.facts["gmac"]))


def draw(runs: Sequence[RunSummary], cost: Cost = GMAC) -> bytes:
    """One panel for every measure.

    Args:
        runs: unmerged ones in FP32 at the trained size are the stars.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
        draw_panel(axes, runs, measure, cost)
        axes.set_title(measure, fontsize=10)
    return bytes(png_of(figure, dpi=80))


def draw_panel(axes: Any, runs: Sequence[RunSummary], measure: str, cost: Cost) -> None:
    points: list[tuple[float, float]] = []
    shown: set[int] = set()
    kinds: set[tuple[str, str]] = set()
    starred = False
    for run in runs:
        across = cost.of(run)
        if across is None:
            continue
        if run.baseline:
            points.append((across, 0.0))
            label = None if starred else "unmerged, trained size"
            starred = True
            axes.plot(*points[-1], "*", color="black", markersize=12, label=label)
            continue
        found = measured(run, measure)
        if found is None or found.value is None:
            continue
        value = 100 * found.value
        low, high = (
            100 * (end if end is not None else found.value) for end in (found.low, found.high)
        )
        mark, kind = mark_of(run)
        kinds.add((mark, kind))
        size = size_of(run)
        color = SIZE_COLORS.get(size, "0.4")
        shown.add(size)
        axes.errorbar(
            [across], [value], yerr=[[max(value - low, 0)], [max(high - value, 0)]],
            marker=mark, color=color, markerfacecolor="white" if is_hollow(run, runs) else color,
            elinewidth=0.6, alpha=0.9, linestyle="",
        )  # fmt: skip
        points.append((across, value))
    for mark, kind in sorted(kinds, key=lambda each: each[1]):
        axes.plot([], [], mark, color="0.4", label=kind)
    for size in sorted(shown, reverse=True):  # a colour, whatever the mark
        axes.plot([], [], color=SIZE_COLORS.get(size, "0.4"), linewidth=5, label=f"{size} pixels")
    line = frontier(points)
    axes.plot(*zip(*line, strict=True), color="0.5", linewidth=1, zorder=0)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(cost.title)
    axes.set_ylabel("points against unmerged")
    axes.legend(fontsize=7, frameon=False)


def mark_of(run: RunSummary) -> tuple[str, str]:
    """Return the mark of a point, and what it stands for."""
    merging = run.facts.get("merging")
    if not merging:
        return "P", "unmerged"
    method, placement = merging["method"], merging["placement"]
    marks = MARKERS.get(placement, ("*", "*"))
    return marks[method != "structsam"], f"{method}, {placement}"


def is_hollow(run: RunSummary, beside: Sequence[RunSummary]) -> bool:
    """Upsampled embeddings; in a chart with INT8 points those of FP32."""
    if any(is_int8(other) for other in beside):
        return not is_int8(run)
    return run.facts.get("embedding") == "upsample"


def has_masks(summary: Summary) -> bool:
    """Whether the unmerged run, if there is one, was scored on anything yet."""
    return summary.baseline is None or "iou" in summary.baseline.metrics


def chapter(folder: Path, summary: Summary, name: str, ints: Summary | None) -> list[str]:
    runs = [run for run in summary.runs if not run.baseline and "iou" in run.metrics]
    runs.sort(key=lambda run: -float(run.facts["gmac"]))
    chart = f"![GMAC against what is lost](frontier-{name}.png)"
    assert summary.baseline is not None
    table = with_int8(main_table(summary, runs), [summary.baseline, *runs], ints)
    lines = [f"## {FOLDERS[name]}", "", chart, "", *table, ""]
    sets = by_set(folder, summary, runs)
    rows = sets[2:]
    if len(rows) > len(runs):
        worst: dict[str, str] = {}
        for row in rows:
            run = row.split("|")[1].strip()
            loss = float(row.split("|")[5].split()[0])
            if run not in worst or loss < float(worst[run].split("|")[5].split()[0]):
                worst[run] = row
        lines += ["The worst set of every run, by mIoU:", "", *sets[:2], *worst.values(), ""]
        lines += ["<details><summary>Set by set</summary>", "", *sets, "", "</details>", ""]
    return lines


def latency_chapter(latencies: Latencies, runs: Sequence[RunSummary]) -> list[str]:
    lines = ["## Latency", "", f"{latencies.machine}, {latencies.date}; medians. Stock SAM, FP32:"]
    for backend in latencies.backends:
        times = sorted(latencies.stock_ms.get(backend, []))
        told = f"{times[0]:.0f} to {times[-1]:.0f} ms" if times else "not measured"
        lines.append(f"{TITLES.get(backend, backend)} {told}.")
    for backend in latencies.backends:
        title = TITLES.get(backend, backend)
        lines += ["", f"![{title}: latency against what is lost](frontier-latency-{backend}.png)"]
    return [*lines, "", *latency_table(latencies, runs), ""]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    try:
        chapters = {
            name: summarise(out / name)
            for name in FOLDERS
            if (out / name / "evaluation.json").is_file()
        }
        begun = [name for name, summary in chapters.items() if not has_masks(summary)]
        for name in begun:
            print(f"{out / name} has no masks of its unmerged run yet", file=sys.stderr)
            del chapters[name]
        if not chapters:
            raise UserError(f"{out} holds no results. Run scripts/frontier_study.sh first")
        for name, summary in chapters.items():
            if summary.baseline is None:
                raise UserError(f"{out / name} has no unmerged run to compare with")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = ["# The frontier", ""]
    for name, summary in chapters.items():
        lines += chapter(out / name, summary, name, chapters.get(f"int8-{name}"))
        write_bytes(out / f"frontier-{name}.png", draw(summary.runs))
    lines += int8_chapter(chapters, FOLDERS)
    latencies = read_latencies(out)
    if latencies.ms:
        timed = [
            run for name in ("int8-box", "box") if name in chapters for run in chapters[name].runs
        ]
        lines += latency_chapter(latencies, timed)
        for backend in latencies.backends:
            cost = Cost(
                f"encoder, ms, {TITLES.get(backend, backend)}", of_backend(latencies, backend)
            )
            write_bytes(out / f"frontier-latency-{backend}.png", draw(timed, cost))
    write_text(out / "frontier.md", "\n".join(lines))
    print(out / "frontier.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
