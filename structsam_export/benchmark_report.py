"""A benchmark's report: rows with their statistics, and the table that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from structsam_export.benchmark_baselines import STOCK, UNMERGED
from structsam_export.bundle import PartName
from structsam_export.cost_card import CostCard

#: What the times are of; every report says so.
TIMED = (
    "one call with arrays in host memory, batch 1; on a GPU copies to and from it included; "
    "without preprocessing and without enlarging masks; the decoder with one box prompt"
)
FIDELITY = "not evaluated"


@dataclass
class BenchRow:
    """One network of one bundle on one backend.

    Args:
        role: `bundle`, or the baseline that it is (`stock`, `unmerged`).
        status: `measured`, `not run` or `failed`, the last two with a `reason`.
        samples_ms: all times after warm-up, in order.
        first_ms: the first call of the process, which also pays for memory that is touched first;
            what a program sees that handles one image.
        peak_memory_mib: of the row's process on the host, interpreter included; None on Windows.
        gmac: multiply-adds / 10^9 as papers count them; None for a decoder.
        of_gemm_rate: share of the measured float32 GEMM rate that the run reached (CPU only).
        speedup: how many times faster than the baseline of that name, by the median.
        first_speedup: the same by the first call.
    """

    bundle: str
    role: str
    model: str
    precision: str
    backend: str
    part: PartName
    random_weights: bool
    parity: str
    fidelity: str = FIDELITY
    status: str = "not run"
    reason: str = ""
    samples_ms: list[float] = field(default_factory=list)
    first_ms: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    peak_memory_mib: float | None = None
    runtime: dict[str, Any] = field(default_factory=dict)
    gmac: float | None = None
    of_gemm_rate: float | None = None
    speedup: dict[str, float] = field(default_factory=dict)
    first_speedup: dict[str, float] = field(default_factory=dict)

    def set_samples(self, all_samples: Sequence[float], warmup: int) -> None:
        """Fill in the statistics of the times in ms, the first `warmup` of them kept apart."""
        samples = all_samples[warmup:]
        self.first_ms = float(all_samples[0])
        self.status, self.samples_ms = "measured", [round(ms, 4) for ms in samples]
        p10, median, p90 = np.percentile(samples, [10, 50, 90])
        self.p10_ms, self.median_ms, self.p90_ms = float(p10), float(median), float(p90)


@dataclass
class BenchReport:
    """All rows. False when a row failed or nothing could be measured."""

    rows: list[BenchRow]
    cards: list[CostCard]
    settings: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    date: str
    command: str

    def __bool__(self) -> bool:
        statuses = [row.status for row in self.rows]
        return "measured" in statuses and "failed" not in statuses

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "cards": [card.to_dict() for card in self.cards],
            "settings": self.settings,
            "hardware": self.hardware,
            "versions": self.versions,
            "date": self.date,
            "command": self.command,
        }


_NUMBERS = (
    "GMAC", "first ms", "x stock", "median ms", "p10", "p90", "x stock", "x unmerged", "MiB",
    "of GEMM",
)  # fmt: skip


def render_table(report: BenchReport) -> Table:
    """Return the table: speed, accuracy and what they were measured with."""
    table = Table(title="Benchmark", caption=caption(report), caption_justify="left")
    for name in ("bundle", "network", "precision", "backend"):
        table.add_column(name, overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parity", overflow="fold")
    table.add_column("fidelity", overflow="fold")
    for row in report.rows:
        table.add_row(*_cells(row), style="dim" if row.role != "bundle" else None)
    return table


def caption(report: BenchReport) -> str:
    """Say how the numbers were measured, and what they do not say."""
    settings, machine = report.settings, report.hardware
    threads = settings["threads"] or "default"
    order = "rows in turns" if settings["interleaved"] else "one row after the other"
    parts = [
        f"{settings['runs']} runs after {settings['warmup']} for warm-up, {order}; "
        f"threads: {threads}; {machine['cpu']}, {machine['usable_cores']} usable cores"
        + (f"; {machine['gpu']}" if machine["gpu"] else ""),
        f"Timed: {settings['timed']}",
        "first: the first call of a process, before warm-up; MiB: peak host memory of that process",
    ]
    if settings["gemm_gflops"] is not None:
        parts.append(f"of GEMM: share of {settings['gemm_gflops']:g} GFLOP/s measured with numpy")
    if any(row.random_weights for row in report.rows):
        parts.append("*: random weights, latency only")
    if any(row.role != "bundle" for row in report.rows):
        parts.append("stock and unmerged: baselines made on the fly")
    return "\n".join(parts)


def _cells(row: BenchRow) -> list[str]:
    name = row.bundle + ("*" if row.random_weights else "")
    start = [name, row.part, row.precision, row.backend]
    gmac = _number(row.gmac, ".1f")
    if row.status != "measured":
        empty = [""] * (len(_NUMBERS) - 1)
        return [*start, gmac, *empty, escape(f"{row.status}: {row.reason}"), row.fidelity]
    share = "" if row.of_gemm_rate is None else f"{row.of_gemm_rate:.0%}"
    return [
        *start,
        gmac,
        _number(row.first_ms, ".0f"),
        _number(row.first_speedup.get(STOCK), ".2f"),
        _number(row.median_ms, ".0f"),
        _number(row.p10_ms, ".0f"),
        _number(row.p90_ms, ".0f"),
        _number(row.speedup.get(STOCK), ".2f"),
        _number(row.speedup.get(UNMERGED), ".2f"),
        _number(row.peak_memory_mib, ".0f"),
        share,
        row.parity,
        row.fidelity if row.role == "bundle" else "",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
