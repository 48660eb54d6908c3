"""Curves of an evaluation: quality against tokens kept, multiply-adds and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from structsam_export.evaluate.table import kept_share
from structsam_export.plot_style import (
    COLORS,
    DARK,
    DARK_COLORS,
    LIGHT,
    Theme,
    png_of,
    require_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from structsam.evaluation.summary import RunSummary, Summary

_MARKERS = "osD^vPX*<>"
_PREFERRED = ("iou", "boundary_iou")
#: Share of the axis by which lines are moved apart where all methods keep as many tokens.
_SHIFT = 0.012
_LEGEND_COLUMNS = 4


def _kept(run: RunSummary) -> float | None:
    share = kept_share(run.facts.get("kept_tokens"))
    return None if share is None else 100 * share


def _gmac(run: RunSummary) -> float | None:
    return run.facts.get("gmac")


def _latency(run: RunSummary) -> float | None:
    return run.latency.median_ms if run.latency else None


_COSTS: tuple[tuple[str, Callable[[RunSummary], float | None]], ...] = (
    ("tokens kept, mean over blocks (%)", _kept),
    ("GMAC of the encoder", _gmac),
    ("encoder, median (ms)", _latency),
)


def series_of(runs: Sequence[RunSummary]) -> dict[str, list[RunSummary]]:
    """Group runs that differ in their rate alone: {name: runs}, a line each.

    The name is the method, and whatever else tells two lines apart.
    """
    keys = [_settings(run) for run in runs]
    varied = [name for name in dict.fromkeys(n for key in keys for n in key) if name != "method"]
    # an unmerged run at another input size has no layers, and tells nothing apart by that
    varied = [name for name in varied if len({key[name] for key in keys if name in key}) > 1]
    found: dict[str, list[RunSummary]] = {}
    for run, key in zip(runs, keys, strict=True):
        words = [key["method"], *(key[n] for n in varied if key.get(n))]
        found.setdefault(", ".join(words), []).append(run)
    return found


def _settings(run: RunSummary) -> dict[str, str]:
    merging = run.facts.get("merging")
    if merging is None:
        found = {"method": "unmerged"}
    else:
        found = {"method": str(merging.get("method"))}
        found["layers"] = _layers(merging.get("layers"))
        found["placement"] = str(merging.get("placement") or "")
        found["options"] = " ".join(f"{k}={v}" for k, v in (merging.get("options") or {}).items())
        for name in ("proportional", "prompt_aware"):
            found[name] = name.replace("_", " ") if merging.get(name) else ""
    size = run.facts.get("image_size")
    found["image_size"] = f"{size} pixels" if size else ""
    for name in ("embedding", "backend", "precision"):
        found[name] = str(run.facts.get(name) or "")
    return found


def _layers(layers: Any) -> str:
    if isinstance(layers, str):
        return "all layers" if layers == "all" else f"{layers} layers"
    return "layers " + " ".join(map(str, layers)) if layers else ""


def draw_curves(summary: Summary, theme: Theme = LIGHT) -> bytes | None:
    """Return a PNG: a row per metric, a column per cost; None where there is nothing to draw.

    Raises:
        UserError: matplotlib is missing.
    """
    merged = [run for run in summary.runs if not run.baseline and run.metrics]
    names = list(dict.fromkeys(name for run in merged for name in run.metrics))
    metrics = [name for name in _PREFERRED if name in names] or names[:2]
    costs = [(t, cost) for t, cost in _COSTS if any(cost(run) is not None for run in merged)]
    if not metrics or not costs:
        return None
    require_matplotlib()
    from matplotlib.figure import Figure

    lines = series_of(merged)
    figure = Figure(figsize=(4.1 * len(costs), 3.1 * len(metrics)), facecolor=theme.paper)
    panels = figure.subplots(len(metrics), len(costs), sharex="col", sharey="row", squeeze=False)
    for row, name in zip(panels, metrics, strict=True):
        for panel, (_, cost) in zip(row, costs, strict=True):
            _draw_panel(panel, summary, lines, name, cost, theme)
        title = next(run.metrics[name].title for run in merged if name in run.metrics)
        row[0].set_ylabel(title, color=theme.ink, fontsize=11)
    for panel, (label, _) in zip(panels[-1], costs, strict=True):
        panel.set_xlabel(label, color=theme.ink)
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        found = panel.get_legend_handles_labels()
        handles |= dict(zip(found[1], found[0], strict=True))
    legend_rows = -(-len(handles) // _LEGEND_COLUMNS)
    figure.tight_layout(rect=(0, (0.12 + 0.24 * legend_rows) / figure.get_figheight(), 1, 1))
    figure.legend(
        list(handles.values()), list(handles), loc="lower center", frameon=False,
        ncols=min(_LEGEND_COLUMNS, len(handles)), labelcolor=theme.ink, fontsize=9.5,
    )  # fmt: skip
    return png_of(figure)


def _draw_panel(
    panel: Axes,
    summary: Summary,
    lines: dict[str, list[RunSummary]],
    metric: str,
    cost: Callable[[RunSummary], float | None],
    theme: Theme,
) -> None:
    points = {name: _points(runs, metric, cost) for name, runs in lines.items()}
    every = [x for line in points.values() for x, *_ in line]
    width = (max(every) - min(every)) if every else 0.0
    shift = _SHIFT * width if cost is _kept else 0.0
    for order, (name, line) in enumerate(points.items()):
        if not line:
            continue
        color = COLORS[order % len(COLORS)]
        color = DARK_COLORS.get(color, color) if theme is DARK else color
        xs, ys, below, above = zip(*line, strict=True)
        moved = [x + shift * (order - (len(points) - 1) / 2) for x in xs]
        panel.errorbar(
            moved, ys, yerr=[below, above], label=name, color=color, capsize=2.5, linewidth=1.6,
            marker=_MARKERS[order % len(_MARKERS)], markersize=5, elinewidth=1,
            linestyle="-" if order < len(COLORS) else ":",
        )  # fmt: skip
    _draw_baseline(panel, summary, metric, cost, theme)
    panel.set_facecolor(theme.paper)
    panel.grid(color=theme.grid, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(x=0.08)
    panel.tick_params(colors=theme.ink, labelsize=9)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.ink)


def _points(
    runs: Sequence[RunSummary], metric: str, cost: Callable[[RunSummary], float | None]
) -> list[tuple[float, float, float, float]]:
    """(cost, value, bar below, bar above) of each run that has them, by cost."""
    found = []
    for run in runs:
        mean = run.metrics[metric].mean if metric in run.metrics else None
        x = cost(run)
        if mean is None or mean.value is None or x is None:
            continue
        low = mean.value if mean.low is None else min(mean.low, mean.value)
        high = mean.value if mean.high is None else max(mean.high, mean.value)
        found.append((x, mean.value, mean.value - low, high - mean.value))
    return sorted(found)


def _draw_baseline(
    panel: Axes,
    summary: Summary,
    metric: str,
    cost: Callable[[RunSummary], float | None],
    theme: Theme,
) -> None:
    """A dashed line at the unmerged value, a cross at what it costs, and a band: the interval."""
    base = summary.baseline
    mean = base.metrics[metric].mean if base and metric in base.metrics else None
    if base is None or mean is None or mean.value is None:
        return
    x = cost(base)
    if x is not None:
        panel.plot([x], [mean.value], marker="x", markersize=7, markeredgewidth=2, color=theme.ink)
    panel.axhline(mean.value, linestyle="--", linewidth=1.4, color=theme.ink, label="unmerged")
    if mean.low is not None and mean.high is not None:
        panel.axhspan(mean.low, mean.high, color=theme.ink, alpha=0.08, linewidth=0)
