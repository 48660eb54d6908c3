"""Quality beside latency, which alone says nothing: what an evaluation found, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.bundle.folder import Bundle
from structsam_export.plot_style import COLORS, png_of, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from structsam.evaluation.summary import RunSummary, Summary
    from structsam_export.bench.report import BenchReport, BenchRow

#: What `merging` of a manifest holds beside what changes masks; the form of attention only rounds
#: differently.
_NOT_OF_MASKS = {"attention", "blocks", "plan_tensors"}
#: Earlier versions wrote `reuse`, and not always all the others.
_USUAL = {"placement": "attention", "align": 1, "reuse": 1}
_MARKERS = {"stock": "s", "unmerged": "D", "bundle": "o"}
_PREFERRED = ("iou", "boundary_iou")


def read_fidelity(results: Sequence[Path]) -> list[Summary]:
    """Read folders that `structsam-export evaluate` wrote; random weights say nothing.

    Raises:
        UserError: no results folder, or a damaged one.
    """
    from structsam.evaluation.summary import summarise

    summaries = [summarise(folder, from_masks=False) for folder in results]
    return [summary for summary in summaries if not summary.random_weights]


def add_fidelity(
    report: BenchReport, bundles: Sequence[Bundle], summaries: Sequence[Summary]
) -> None:
    """Give every encoder row that an evaluation of its model and merging covers its quality.

    A bundle with random weights stands for the model that was evaluated; one with others must
    hold the same. `quality` holds `metric`, `title`, `dataset`, `value`, `low`, `high`, and for
    merged rows `difference` with `difference_low` and `difference_high`, all in 0..1, and `masks`.

    Args:
        bundles: what was measured.
        summaries: see `read_fidelity`; the first that covers a row counts.
    """
    of_name = {bundle.name: bundle for bundle in bundles}
    for row in report.rows:
        if row.part != "encoder":
            continue
        bundle = of_name.get(row.bundle) if row.role == "bundle" else None
        wanted = None if bundle is None else _settings(bundle.manifest["merging"])
        size = {} if bundle is None else bundle.model.size
        for summary in summaries:
            run = _find(summary, row, wanted, size) if _same_weights(summary, row, bundle) else None
            if run is not None:
                row.quality = _quality(run, summary)
                row.fidelity = _words(row.quality)
                break


def _same_weights(summary: Summary, row: BenchRow, bundle: Bundle | None) -> bool:
    evaluated = summary.facts["model"]
    if evaluated.get("name") != row.model:
        return False
    if bundle is None or bundle.has_random_weights:
        return True
    return bool(evaluated.get("sha256") == bundle.model.sha256)


def _settings(merging: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what decides masks; None where nothing is merged."""
    if merging is None or merging.get("rate") == 0:
        return None
    return {
        name: value
        for name, value in merging.items()
        if name not in _NOT_OF_MASKS and value and value != _USUAL.get(name)
    }


def _find(
    summary: Summary, row: BenchRow, wanted: dict[str, Any] | None, size: dict[str, Any]
) -> RunSummary | None:
    """The finished run of this merging and size, of the row's precision where there is one."""
    found = [
        run
        for run in summary.runs
        if run.facts.get("complete") and _settings(run.facts.get("merging")) == wanted
        and {k: run.facts[k] for k in ("image_size", "embedding") if k in run.facts} == size
        and any(metric.mean.value is not None for metric in run.metrics.values())
    ]  # fmt: skip
    found.sort(key=lambda run: run.facts.get("precision") != row.precision)
    return found[0] if found else None


def _quality(run: RunSummary, summary: Summary) -> dict[str, Any]:
    names = [name for name, metric in run.metrics.items() if metric.mean.value is not None]
    name = next((n for n in _PREFERRED if n in names), names[0])
    metric, dataset = run.metrics[name], summary.facts["dataset"]
    where = Path(str(dataset.get("root") or "")).name
    found: dict[str, Any] = {
        "metric": name,
        "title": metric.title,
        "dataset": f"{metric.title} on {dataset.get('name', 'a dataset')} {where}, "
        f"{run.images} images, {run.masks} masks, evaluated at {run.facts.get('precision')}",
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


def draw_benchmark(report: BenchReport) -> bytes | None:
    """Return a PNG of the measured encoders; None where nothing was measured.

    Raises:
        UserError: matplotlib is missing.
    """
    rows = [row for row in report.rows if row.part == "encoder" and row.median_ms is not None]
    if not rows:
        return None
    require_matplotlib()
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
    return png_of(figure)


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
