"""Files and table of `tune`: the schedule, what every block costs, and the Pareto plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from structsam_export.bundle import atomic
from structsam_export.plot_style import png_of, require_matplotlib
from structsam_export.tune.schedule_search import Candidate, mean
from structsam_export.tune.tune import TuneReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = [("v", "C4"), ("o", "C0"), ("^", "C1"), ("D", "C2"), ("P", "C5")]  # of candidates
_FEW = 6  # held-out photos below which a difference may be luck
_UNITS = {"gmac": "GMAC in the blocks", "latency": "ms in the blocks"}


def save_report(report: TuneReport, out: Path) -> TuneReport:
    """Write `schedule.json` and `tune.png`, and return the report with their paths."""
    require_matplotlib()
    suffix = "-least-cost" if report.goal == "cost" else ""
    schedule, picture = out / f"schedule{suffix}.json", out / f"tune{suffix}.png"
    atomic.write_bytes(picture, png_of(figure_of(report), dpi=130))
    report.schedule.save(schedule)
    table = out / f"sensitivity_{report.best.placement}.csv"
    return replace(report, files=(schedule, picture, table))


def figure_of(report: TuneReport) -> Figure:
    """Plot loss against cost, the rates found, and what each block loses at each rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.6), layout="constrained")
    pareto, rates, blocks = figure.subplot_mosaic([["p", "r"], ["p", "b"]]).values()
    pareto.plot(
        *zip(*report.sensitivity.pareto(), strict=True), color="0.6", label="schedules, predicted"
    )
    looks: dict[str, tuple[str, str]] = {}
    for candidate in report.candidates:
        known = candidate.name in looks
        first = candidate.name == "uniform"
        look = looks.setdefault(
            candidate.name, ("s", "C3") if first else _LOOKS[len(looks) % len(_LOOKS)]
        )
        label = None if known else candidate.name
        pareto.plot(
            candidate.cost, mean(candidate.search), look[0], color=look[1], alpha=0.7, label=label
        )
    pareto.plot(
        report.best.cost,
        mean(report.best.search),
        "o",
        markersize=15,
        markerfacecolor="none",
        color="black",
        label="the schedule",
    )
    pareto.set_xlabel(_UNITS[report.cost_unit])
    pareto.set_ylabel("embedding distance + mask disagreement, search photos")
    pareto.set_ylim(bottom=0)
    pareto.legend(fontsize=8, frameon=False)
    depth = range(len(report.best.rates))
    rates.bar(depth, report.best.rates, color="C0", label="schedule")
    rates.axhline(report.uniform.rates[0], color="C3", label="uniform")
    rates.set_ylabel("rate")
    rates.legend(fontsize=8, frameon=False)
    for rate, loss in zip(report.sensitivity.rates, report.sensitivity.loss.T, strict=True):
        if rate:
            blocks.plot(depth, loss, marker=".", label=f"{rate:g}")
    blocks.set_yscale("log")
    blocks.set_xlabel("block")
    blocks.set_ylabel("loss if merged alone")
    blocks.legend(title="rate", fontsize=7, ncols=3, frameon=False)
    figure.suptitle(
        f"{report.schedule.model}, {report.schedule.method}, placement {report.schedule.placement}"
    )
    return figure


def tune_table(report: TuneReport) -> Table:
    """Show the schedule beside the uniform rate."""
    title = f"{report.schedule.model}: rates per block, placement {report.best.placement}"
    if report.best.placement != report.uniform.placement:
        title += f" (uniform: {report.uniform.placement})"
    table = Table(title=title)
    for column in ("", "rates", _UNITS[report.cost_unit], "search photos", "held-out photos"):
        table.add_column(column, justify="left" if column in ("", "rates") else "right")
    for name, candidate in (("uniform", report.uniform), ("schedule", report.best)):
        table.add_row(name, *_cells(candidate))
    loss = 1 - mean(report.best.held_out) / max(mean(report.uniform.held_out), 1e-12)
    cost = 1 - report.best.cost / report.uniform.cost
    count = len(report.best.held_out)
    verdict = f"{_less(loss)} loss" + (f" and {_less(cost)} cost" if report.goal == "cost" else "")
    if report.best.rates == report.uniform.rates:
        verdict = "nothing better"
    table.caption = (
        f"Loss: relative L2 of the embedding + 1 - IoU of masks at nine points, against the "
        f"unmerged model. On {count} photo(s) that the search did not see: {verdict} than uniform."
    )
    if count < _FEW:
        table.caption += f" Fewer than {_FEW} such photos: it may be luck."
    return table


def _less(share: float) -> str:
    return f"{abs(100 * share):.1f} % {'less' if share >= 0 else 'more'}"


def _cells(candidate: Candidate) -> tuple[str, ...]:
    return (
        " ".join(f"{rate:g}" for rate in candidate.rates),
        f"{candidate.cost:.2f}",
        f"{mean(candidate.search):.4f}",
        f"{mean(candidate.held_out):.4f}",
    )


def facts(report: TuneReport) -> dict[str, Any]:
    """Return a JSON-ready form."""
    return {
        "schedule": {**vars(report.schedule), "rates": list(report.schedule.rates)},
        "beats_uniform": report.beats_uniform,
        "candidates": [
            {
                "name": c.name,
                "placement": c.placement,
                "rates": list(c.rates),
                "cost": c.cost,
                "search_loss": mean(c.search),
            }
            for c in report.candidates
        ],
        "goal": report.goal,
        "sensitivity": {
            "rates": list(report.sensitivity.rates),
            "loss": report.sensitivity.loss.tolist(),
        },
        "files": [str(file) for file in report.files],
    }
