#!/usr/bin/env python3
"""The tables of docs/fidelity.md from the results of `fidelity_study.sh`.

    python scripts/fidelity_tables.py OUT/results > tables.md

Every merged run against the unmerged one, in groups; then every method against StructSAM at the
same rate and layers, paired mask by mask, with 95 % bootstrap intervals over images; then every
run set by set, where names of images say several sets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.bootstrap import Estimate, intervals, per_image
from structsam.evaluation.mask_rle import rle_iou
from structsam.evaluation.read_results import RunRows, read_rows
from structsam.evaluation.run_metrics import pair
from structsam.evaluation.summary import RunSummary, Summary, summarise
from structsam_export.evaluate.table import kept_share

_METRICS = ("iou", "boundary_iou")
_USUAL = {
    "layers": "all", "placement": "attention", "proportional": False,
    "prompt_aware": None, "options": {},
}  # fmt: skip


def points(estimate: Estimate | None, sign: str = "+") -> str:
    """Percentage points with their interval, such as `-0.2 [-0.7, +0.3]`; without one of an image.

    Args:
        sign: "+" for differences, "" for values.
    """
    if estimate is None or estimate.value is None:
        return ""
    ends = [end for end in (estimate.low, estimate.high) if end is not None]
    text, *limits = (f"{100 * value:{sign}.1f}" for value in (estimate.value, *ends))
    return f"{text} [{', '.join(limits)}]" if len(limits) == 2 else text


def main_table(summary: Summary, runs: Iterable[RunSummary]) -> list[str]:
    base = summary.baseline
    assert base is not None
    lines = [
        "| run | kept | GMAC | encoder ms | mIoU | boundary IoU | disagreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in (base, *runs):
        cells = []
        for name in _METRICS:
            metric = run.metrics[name]
            if run.baseline:
                cells.append(points(metric.mean, sign=""))
            else:
                mark = {"worse": ", worse", "better": ", better"}.get(metric.verdict, "")
                cells.append(points(metric.difference) + mark)
        share = kept_share(run.facts.get("kept_tokens"))
        moved = run.disagreement.value if run.disagreement and not run.baseline else None
        cells = [
            run.label,
            "" if share is None else f"{share:.0%}",
            f"{run.facts['gmac']:.1f}",
            f"{run.latency.median_ms:.0f}" if run.latency else "",
            *cells,
            "" if moved is None else f"{100 * moved:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def with_disagreement(rows: RunRows, base: RunRows) -> np.ndarray:
    """Both metrics and the disagreement with the unmerged run of every mask, [M, 3]."""
    columns = [rows.values[:, rows.metrics.index(name)] for name in _METRICS]
    moved = np.full(len(rows.image), np.nan)
    pairs = pair(rows, base)
    for i, j in zip(pairs.run.tolist(), pairs.base.tolist(), strict=True):
        moved[i] = 1 - rle_iou(rows.rle[i], base.rle[j], rows.sizes[i])
    return np.stack([*columns, moved], axis=1)


def paired(rows: RunRows, other: RunRows, base: RunRows) -> list[Estimate]:
    """Mean difference `rows` - `other` of metrics and disagreement over the masks of both."""
    pairs = pair(rows, other)
    table = np.full((len(rows.image), len(_METRICS) + 1), np.nan)
    mine, theirs = with_disagreement(rows, base), with_disagreement(other, base)
    table[pairs.run] = mine[pairs.run] - theirs[pairs.base]
    return intervals(*per_image(table, rows.image, len(rows.image_ids)))


def against_structsam(folder: Path, summary: Summary, runs: Iterable[RunSummary]) -> list[str]:
    """Every run minus plain StructSAM at the same rate, layers and placement."""
    plain = {
        _place(run.facts["merging"]): run for run in summary.runs if _is_plain(run.facts["merging"])
    }
    lines = [
        "| run | mIoU minus StructSAM's | boundary IoU | disagreement |",
        "|---|---|---|---|",
    ]
    for run in runs:
        partner = plain.get(_place(run.facts["merging"]))
        if partner is None or partner is run:
            continue
        three = (run, partner, summary.baseline)
        found = [read_rows(folder, one.name, with_rle=True) for one in three if one]
        differences = paired(*found)  # type: ignore[arg-type]
        lines.append(f"| {run.label} | {' | '.join(map(points, differences))} |")
    return lines


def by_set(folder: Path, summary: Summary, runs: Iterable[RunSummary]) -> list[str]:
    """Every run minus the unmerged one, set by set: a set is what precedes `/` in image names."""
    assert summary.baseline is not None
    base = read_rows(folder, summary.baseline.name)
    lines = ["| run | set | images | masks | mIoU | boundary IoU |", "|---|---|---|---|---|---|"]
    for run in runs:
        rows = read_rows(folder, run.name)
        columns = [rows.metrics.index(name) for name in _METRICS]
        pairs = pair(rows, base)
        moved = np.full((len(rows.image), len(columns)), np.nan)
        moved[pairs.run] = (rows.values[pairs.run] - base.values[pairs.base])[:, columns]
        sets = np.array([name.partition("/")[0] for name in rows.image_ids])
        for name in sorted(set(sets)):
            sums, counts = per_image(moved, rows.image, len(sets))
            found = intervals(sums[sets == name], counts[sets == name])
            cells = [run.label, name, str(found[0].images), str(found[0].masks)]
            lines.append(f"| {' | '.join([*cells, *map(points, found)])} |")
    return lines


def _place(merging: dict[str, Any] | None) -> tuple[str, ...]:
    merging = merging or {}
    names = ("layers", "placement")
    return str(merging.get("rate")), *(str(merging.get(name, _USUAL[name])) for name in names)


def _is_plain(merging: dict[str, Any] | None) -> bool:
    """StructSAM as it is by default."""
    rest = [name for name in _USUAL if name not in ("layers", "placement")]
    return bool(merging) and merging["method"] == "structsam" and all(
        merging.get(name, _USUAL[name]) == _USUAL[name] for name in rest
    )  # fmt: skip


def group_of(merging: dict[str, Any] | None) -> str:
    """The table that a run belongs to: by what is not usual about it."""
    if not merging:
        return "unmerged"  # of another backend or input size than the baseline
    unusual = [name for name, usual in _USUAL.items() if merging.get(name, usual) != usual]
    return ", ".join(unusual) or "methods"


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    try:
        summary = summarise(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    groups: dict[str, list[RunSummary]] = {}
    for run in summary.runs:
        if not run.baseline and run.metrics:
            groups.setdefault(group_of(run.facts["merging"]), []).append(run)
    if summary.baseline is None:
        print(f"error: {folder} has no unmerged run to compare with", file=sys.stderr)
        return 2
    for name, runs in groups.items():
        print(f"## {name}\n")
        print("\n".join(main_table(summary, runs)) + "\n")
        compared = against_structsam(folder, summary, runs)
        if len(compared) > 2:
            print("\n".join(compared) + "\n")
        several = by_set(folder, summary, runs)
        if len(several) > 2 + len(runs):
            print("\n".join(several) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
