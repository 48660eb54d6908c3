"""Words and numbers of an evaluation: the cells that Markdown, HTML and terminal share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from structsam.evaluation.bootstrap import Estimate
    from structsam.evaluation.run_metrics import MetricSummary
    from structsam.evaluation.summary import RunSummary, Summary

#: First line of everything that shows quality of a model that was never trained.
RANDOM = "Random weights: the masks carry no meaning, and the quality numbers below mean nothing."

_TESTED = "Verdicts: 95 % bootstrap intervals of paired differences, in summary.json and `report`."


def metric_titles(summary: Summary) -> dict[str, str]:
    """Return {name: title} of all metrics that some run has."""
    return {m.name: m.title for run in summary.runs for m in run.metrics.values()}


def set_columns(summary: Summary) -> list[str]:
    """Return the columns of average precision that have a value in some run."""
    found = [c for run in summary.runs for c, value in run.set_metrics.items() if value == value]
    return list(dict.fromkeys(found))


def run_row(summary: Summary, run: RunSummary) -> dict[str, Any]:
    """Return one run as text, ready for a template."""
    base = summary.baseline
    gmac, base_gmac = run.facts.get("gmac"), base.facts.get("gmac") if base else None
    disagreement = run.disagreement
    return {
        "label": run.label,
        "runs_on": " ".join(str(run.facts[k]) for k in ("backend", "precision") if k in run.facts),
        "baseline": run.baseline,
        "kept": kept_tokens(run.facts.get("kept_tokens")),
        "gmac": "" if gmac is None else f"{gmac:.1f}",
        "gmac_share": _percent(gmac / base_gmac) if gmac and base_gmac else "",
        "latency": f"{run.latency.median_ms:.0f}" if run.latency else "",
        "latency_range": _range(run.latency.p10_ms, run.latency.p90_ms) if run.latency else "",
        "latency_share": _latency_share(run, base),
        "metrics": [_metric(run.metrics.get(name)) for name in metric_titles(summary)],
        "disagreement": _value(disagreement),
        "disagreement_interval": _interval(disagreement),
        "sets": [_number(run.set_metrics.get(column)) for column in set_columns(summary)],
        "images": run.images,
        "masks": run.masks,
        "notes": list(run.notes) + _missing(run),
    }


def kept_tokens(kept: dict[str, float] | None) -> str:
    """Say the share of tokens kept: one number, or window and global blocks apart.

    >>> kept_tokens({"window": 1.0, "global": 0.5, "all": 0.8333})
    '83 % (window 100 %, global 50 %)'
    """
    if not kept:
        return ""
    kinds = {name: share for name, share in kept.items() if name != "all"}
    overall = kept_share(kept)
    shown = "" if overall is None else _percent(overall)
    if len(set(kinds.values())) < 2:
        return shown
    return f"{shown} ({', '.join(f'{name} {_percent(share)}' for name, share in kinds.items())})"


def kept_share(kept: dict[str, float] | None) -> float | None:
    """Return the mean share over all blocks, in 0..1; over kinds of blocks where that is unknown.

    >>> kept_share({"window": 1.0, "global": 0.5})
    0.75
    """
    if not kept:
        return None
    return kept["all"] if "all" in kept else sum(kept.values()) / len(kept)


def findings(summary: Summary) -> str:
    """Count the verdicts of the first metric in one sentence; none of random weights."""
    titles = metric_titles(summary)
    name = next(iter(titles), None)
    verdicts = [r.metrics[name].verdict for r in summary.runs if name in r.metrics] if name else []
    compared = [verdict for verdict in verdicts if verdict]
    if not compared or name is None or summary.random_weights:
        return ""
    kinds = ("better", "no difference", "worse", "not tested")
    counts = ", ".join(f"{compared.count(k)} {k}" for k in kinds if k in compared)
    runs = "1 run" if len(compared) == 1 else f"{len(compared)} runs"
    return f"{titles[name]} of {runs} against the unmerged model: {counts}."


def summary_table(summary: Summary) -> Table:
    """Return the table for a terminal."""
    table = Table(title=escape(f"{summary.facts['dataset'].get('title', '')}: {_about(summary)}"))
    for column in ("run", "tokens kept", "GMAC", "encoder ms"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for title in metric_titles(summary).values():
        table.add_column(escape(title), justify="right", no_wrap=True)
        table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("disagreement", justify="right")
    sets = set_columns(summary)[:1]  # AP itself; its kinds are in the report
    for column in sets:
        table.add_column(column, justify="right")
    for run in summary.runs:
        row = run_row(summary, run)
        cells = [row["label"], row["kept"].split(" (")[0]]
        cells += [_joined(row["gmac"], row["gmac_share"]), row["latency"]]
        for metric in row["metrics"]:
            cells += [metric["value"], f"{metric['difference']} {metric['verdict']}".strip()]
        cells += [row["disagreement"], *row["sets"][: len(sets)]]
        table.add_row(*map(escape, cells), style="dim" if row["baseline"] else None)
    notes = [f"{run.label}: {note}" for run in summary.runs for note in run.notes]
    words = [RANDOM] if summary.random_weights else []
    words += [findings(summary), *notes, *summary.notes, _TESTED]
    table.caption = escape("\n".join(filter(None, words)))
    return table


def _about(summary: Summary) -> str:
    facts, protocol = summary.facts, summary.facts["protocol"]
    prompt = protocol.get("prompt", "")
    return f"{facts['model'].get('name')}, protocol {protocol.get('name')}, {prompt} prompt"


def _metric(metric: MetricSummary | None) -> dict[str, str]:
    if metric is None:
        return dict.fromkeys(("value", "interval", "difference", "difference_interval"), "") | {
            "verdict": "", "kind": ""
        }  # fmt: skip
    change = metric.difference
    return {
        "value": _value(metric.mean),
        "interval": _interval(metric.mean),
        "difference": "" if change is None or change.value is None else _signed(change.value),
        "difference_interval": "" if change is None else _interval(change, signed=True),
        "verdict": metric.verdict,
        "kind": metric.verdict.replace(" ", "-"),
    }


def _missing(run: RunSummary) -> list[str]:
    return [
        f"{m.title} is undefined for {m.missing} of {run.masks} masks"
        for m in run.metrics.values()
        if m.missing
    ]


def _latency_share(run: RunSummary, base: RunSummary | None) -> str:
    if base is None or not (run.latency and base.latency and base.latency.median_ms):
        return ""
    return _percent(run.latency.median_ms / base.latency.median_ms)


def _value(estimate: Estimate | None) -> str:
    return _number(estimate.value if estimate else None)


def _interval(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    write = _signed if signed else _number
    return f"{write(estimate.low)} to {write(estimate.high)}"


def _range(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}"


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"


def _signed(value: float) -> str:
    """Sign and four decimals; no sign where they are all zero."""
    text = f"{value:+.4f}"
    return text if any(digit in "123456789" for digit in text) else "0.0000"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _joined(value: str, more: str) -> str:
    return f"{value} ({more})" if value and more else value
