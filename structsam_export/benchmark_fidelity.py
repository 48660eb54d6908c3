"""Sets what an evaluation found beside a benchmark's rows: latency alone says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.bundle import Bundle

if TYPE_CHECKING:
    from structsam.evaluation.summary import RunSummary, Summary
    from structsam_export.benchmark_report import BenchReport

#: Fields of `MergeConfig` that change masks; `attention` and `align` keep or round them.
_SETTINGS = (
    "method", "rate", "layers", "placement", "reuse", "options", "proportional", "prompt_aware",
)  # fmt: skip
_PREFERRED = ("iou", "boundary_iou")


def add_fidelity(report: BenchReport, bundles: Sequence[Bundle], results: Sequence[Path]) -> None:
    """Give every encoder row that an evaluation of its model and merging covers its quality.

    `quality` holds `metric`, `title`, `value`, `low`, `high`, and for merged rows `difference`
    with `difference_low` and `difference_high`, all in 0..1, and `masks`.

    Args:
        bundles: what was measured, by name.
        results: folders that `structsam-export evaluate` wrote.

    Raises:
        UserError: no results folder.
    """
    from structsam.evaluation.summary import summarise

    merging = {bundle.name: bundle.manifest["merging"] for bundle in bundles}
    summaries = [summarise(folder, from_masks=False) for folder in results]
    for row in report.rows:
        if row.part != "encoder":
            continue
        wanted = None if row.role != "bundle" else _settings(merging[row.bundle])
        for summary in summaries:
            if summary.facts["model"].get("name") == row.model and (run := _find(summary, wanted)):
                row.quality = _quality(run)
                row.fidelity = _words(row.quality)
                break


def _settings(merging: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what decides masks; None where nothing is merged."""
    if merging is None or merging.get("rate") == 0:
        return None
    found = {name: merging.get(name) for name in _SETTINGS}
    return found | {"placement": found["placement"] or "attention", "reuse": found["reuse"] or 1}


def _find(summary: Summary, wanted: dict[str, Any] | None) -> RunSummary | None:
    for run in summary.runs:
        if run.metrics and _settings(run.facts.get("merging")) == wanted:
            return run
    return None


def _quality(run: RunSummary) -> dict[str, Any]:
    name = next((n for n in _PREFERRED if n in run.metrics), next(iter(run.metrics)))
    metric = run.metrics[name]
    found: dict[str, Any] = {
        "metric": name,
        "title": metric.title,
        "value": metric.mean.value,
        "low": metric.mean.low,
        "high": metric.mean.high,
        "masks": run.masks,
    }
    if metric.difference is not None:
        found |= {
            "difference": metric.difference.value,
            "difference_low": metric.difference.low,
            "difference_high": metric.difference.high,
        }
    return found


def _words(quality: dict[str, Any]) -> str:
    """Such as `mIoU 55.8, -0.2 [-0.7, +0.3]`, in percent."""
    text = f"{quality['title']} {100 * quality['value']:.1f}"
    if quality.get("difference") is None:
        return text
    text += f", {100 * quality['difference']:+.1f}"
    low, high = quality["difference_low"], quality["difference_high"]
    return text if low is None or high is None else f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"
