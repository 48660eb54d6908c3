"""INT8 beside FP32 at the points of `frontier_study.sh`: a column of its tables, and a chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fidelity_tables import points

from structsam.evaluation.summary import RunSummary, Summary


def is_int8(run: RunSummary) -> bool:
    return str(run.facts.get("precision")).startswith("int8")


def point_of(run: RunSummary) -> tuple[object, ...]:
    """Return what a run has in common with the same point in another precision."""
    merging = run.facts.get("merging") or {}
    names = ("method", "rate", "placement")
    return *map(run.facts.get, ("image_size", "embedding")), *map(merging.get, names)


def in_int8(summary: Summary | None) -> dict[tuple[object, ...], RunSummary]:
    """Return the INT8 runs of a chapter by their point."""
    runs = summary.runs if summary else ()
    return {point_of(run): run for run in runs if is_int8(run) and "iou" in run.metrics}


def with_int8(table: list[str], runs: Sequence[RunSummary], ints: Summary | None) -> list[str]:
    """Add a column with what INT8 loses in mIoU, if any of `runs`, those of the rows, has it."""
    found = in_int8(ints)
    if not any(point_of(run) in found for run in runs):
        return table
    cells = ["mIoU, INT8", "---"]
    for run in runs:
        twin = found.get(point_of(run))
        cells.append("" if twin is None else points(twin.metrics["iou"].difference))
    return [f"{line} {cell} |" for line, cell in zip(table, cells, strict=True)]


def int8_chapter(chapters: Mapping[str, Summary], titles: Mapping[str, str]) -> list[str]:
    """How far INT8 lies from FP32 at the same points, of the chapters that have both.

    Args:
        chapters: by name; those of INT8 have `int8-` before the name of the same in FP32.
        titles: of the chapters.
    """
    rows = []
    for name, summary in chapters.items():
        found = in_int8(chapters.get(f"int8-{name}"))
        twins = [(run, found[point_of(run)]) for run in summary.runs if point_of(run) in found]
        cells = [titles[name].partition(":")[0], str(len(twins))]
        for metric in ("iou", "boundary_iou"):
            apart = [lost(ints, metric) - lost(floats, metric) for floats, ints in twins]
            if apart:
                mean, most = sum(apart) / len(apart), max(apart, key=abs)
                cells.append(f"{mean:+.2f}, {most:+.1f}")
        if twins:
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    head = "| INT8 minus FP32 | points | mIoU: mean, furthest | boundary IoU: mean, furthest |"
    return ["## INT8 beside FP32", "", head, "|---|---|---|---|", *rows, ""]


def lost(run: RunSummary, metric: str) -> float:
    """Return the difference to unmerged in points; 0 of the unmerged run itself."""
    difference = run.metrics[metric].difference
    return 0.0 if difference is None or difference.value is None else 100 * difference.value
