"""A benchmark's report: rows with their statistics, and the table that shows them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.box import HEAVY_HEAD, MARKDOWN, Box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from structsam_export.bench.cost_card import CostCard
from structsam_export.bench.encoders import STOCK, UNMERGED
from structsam_export.bench.gpu_state import state_lines
from structsam_export.bench.steady import TOLERANCE, WINDOW
from structsam_export.bundle.manifest import PartName

#: What the times are of; every report says so.
TIMED = (
    "one call with arrays in host memory; on a GPU copies to and from it included; "
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
        device_samples_ms: the same between CUDA events around the network, with inputs and outputs
            on the GPU; empty where the CPU computes.
        device_ms: their median.
        warm_up: of a row on a GPU how its times became steady; see `steady.warm_up`.
        first_ms: the first call of the process, which also pays for memory that is touched first;
            what a program sees that handles one image.
        peak_memory_mib: of the row's process on the host, interpreter included; None on Windows.
        gmac: multiply-adds / 10^9 as papers count them; None for a decoder.
        with_decoder_ms: of an encoder of batch 1: its median plus the decoder's for one box.
        of_gemm_rate: share that the run reached of a matrix product's measured rate on the same
            device, on a GPU by device time and in the same precision, on a CPU in float32.
        quality: what an evaluation says of this merging; see `benchmark_fidelity`.
        speedup: how many times faster than the baseline of that name, by the median.
        first_speedup: the same by the first call.
    """

    bundle: str
    role: str
    model: str
    precision: str
    backend: str
    part: PartName
    batch: int
    random_weights: bool
    parity: str
    fidelity: str = FIDELITY
    status: str = "not run"
    reason: str = ""
    samples_ms: list[float] = field(default_factory=list)
    device_samples_ms: list[float] = field(default_factory=list)
    device_ms: float | None = None
    warm_up: dict[str, Any] | None = None
    first_ms: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    with_decoder_ms: float | None = None
    peak_memory_mib: float | None = None
    runtime: dict[str, Any] = field(default_factory=dict)
    gmac: float | None = None
    of_gemm_rate: float | None = None
    speedup: dict[str, float] = field(default_factory=dict)
    first_speedup: dict[str, float] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)

    @property
    def gpu_memory_mib(self) -> float | None:
        """Device memory of the network in MiB, where the backend can tell."""
        return self.runtime.get("device_memory_mib")

    def set_samples(self, all_samples: Sequence[tuple[float, float | None]], warmup: int) -> None:
        """Fill in the statistics of the times, the first `warmup` of them kept apart.

        Args:
            all_samples: ms of a call, and ms on the GPU or None.
        """
        walls = [wall for wall, _ in all_samples[warmup:]]
        devices = [device for _, device in all_samples[warmup:] if device is not None]
        self.first_ms = float(all_samples[0][0])
        self.status, self.samples_ms = "measured", [round(ms, 4) for ms in walls]
        p10, median, p90 = np.percentile(walls, [10, 50, 90])
        self.p10_ms, self.median_ms, self.p90_ms = float(p10), float(median), float(p90)
        if devices:
            self.device_samples_ms = [round(ms, 4) for ms in devices]
            self.device_ms = float(np.median(devices))


@dataclass
class BenchReport:
    """All rows. False when a row failed or nothing could be measured.

    Args:
        bounds: what devices that were asked for need at least; see `bench/roofline.py`.
    """

    rows: list[BenchRow]
    cards: list[CostCard]
    settings: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    date: str
    command: str
    bounds: list[dict[str, Any]] = field(default_factory=list)

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
            "bounds": self.bounds,
        }


@dataclass(frozen=True)
class _Column:
    """A column of numbers; left out where no row has one."""

    title: str
    form: str
    value: Callable[[BenchRow], float | None]
    missing: str = ""


_COLUMNS = (
    _Column("batch", "d", lambda row: row.batch if row.part == "encoder" else None),
    _Column("GMAC", ".1f", lambda row: row.gmac),
    _Column("device ms", ".4g", lambda row: row.device_ms, missing="-"),
    _Column("first ms", ".0f", lambda row: row.first_ms),
    _Column("first x stock", ".2f", lambda row: row.first_speedup.get(STOCK)),
    _Column("median ms", ".4g", lambda row: row.median_ms),
    _Column("p10", ".4g", lambda row: row.p10_ms),
    _Column("p90", ".4g", lambda row: row.p90_ms),
    _Column("x stock", ".2f", lambda row: row.speedup.get(STOCK)),
    _Column("x unmerged", ".2f", lambda row: row.speedup.get(UNMERGED)),
    _Column("+ decoder", ".4g", lambda row: row.with_decoder_ms),
    _Column("MiB", ".0f", lambda row: row.peak_memory_mib),
    _Column("GPU MiB", ".0f", lambda row: row.gpu_memory_mib),
    _Column("of GEMM", ".0%", lambda row: row.of_gemm_rate),
)


def render_table(report: BenchReport, box: Box | None = HEAVY_HEAD) -> Table:
    """Return the table: speed, accuracy and what they were measured with."""
    table = Table(title="Benchmark", caption=caption(report), caption_justify="left", box=box)
    for name in ("bundle", "network", "precision", "backend"):
        table.add_column(name, overflow="fold")
    columns = [c for c in _COLUMNS if any(c.value(row) is not None for row in report.rows)]
    if all(row.batch == 1 for row in report.rows):
        columns = [column for column in columns if column.title != "batch"]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("parity", overflow="fold")
    table.add_column("fidelity", overflow="fold")
    for row in report.rows:
        name = row.bundle + ("*" if row.random_weights else "")
        measured = row.status == "measured"
        cells = [_number(c.value(row), c) for c in columns]
        parity = row.parity if measured else escape(f"{row.status}: {row.reason}")
        shown = row.part == "encoder" and (row.quality or row.role == "bundle")
        fidelity = row.fidelity if shown else ""
        style = "dim" if row.role != "bundle" else None
        table.add_row(
            name, row.part, row.precision, row.backend, *cells, parity, fidelity, style=style
        )
    return table


def markdown(report: BenchReport) -> str:
    """Return the table as Markdown, with the command and how it was measured below it."""
    text = io.StringIO()
    table = render_table(report, MARKDOWN)
    table.title = table.caption = None
    Console(file=text, width=10_000).print(table)
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    told = [f"`{report.command}`, {report.date[:10]}", *caption(report).splitlines()]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in told) + "\n"


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
    parts += _about_the_gpu(report)
    if any(row.with_decoder_ms for row in report.rows):
        parts.append("+ decoder: sum of the two medians; bundles with one decoder share its row")
    if any(row.gpu_memory_mib for row in report.rows):
        parts.append("GPU MiB: torch: peak of its allocator; engines: what opening them took")
    for device, rate in settings["gemm_gflops"].items():
        parts.append(f"of GEMM: share of {rate:g} GFLOP/s measured with a matrix product, {device}")
    if any(row.random_weights for row in report.rows):
        parts.append("*: random weights, latency only")
    if any(row.role != "bundle" for row in report.rows):
        parts.append("stock (always FP32) and unmerged: baselines made on the fly")
    for told in dict.fromkeys(row.quality["dataset"] for row in report.rows if row.quality):
        parts.append(f"fidelity: {told}; differences with 95 % intervals")
    return "\n".join(parts)


def _about_the_gpu(report: BenchReport) -> list[str]:
    """Say what device times are of, and whether the GPU and its kernels were settled."""
    untimed = [
        f"no device time: {row.bundle}, {row.part} on {row.backend}: "
        f"{row.runtime['no_device_time']}"
        for row in report.rows
        if "no_device_time" in row.runtime
    ]
    rows = [row for row in report.rows if row.device_ms is not None]
    if not rows:
        return untimed
    parts = [
        "device ms: median between CUDA events around the network, inputs and outputs already on "
        f"the GPU; -: {'see below, or ' if untimed else ''}the CPU computes",
        *untimed,
    ]
    warmed = [row.warm_up for row in rows if row.warm_up]
    if warmed:
        parts.append(
            f"GPU rows warmed up for {max(w['runs'] for w in warmed)} runs at most, until two "
            f"windows of {WINDOW} agreed within {TOLERANCE:.0%}"
        )
    for row in rows:
        if row.warm_up and not row.warm_up["steady"]:
            parts.append(
                f"not steady: {row.bundle}, {row.part} on {row.backend}, whose last two windows "
                f"differ by {row.warm_up['difference']:.0%}"
            )
    kinds = {str(row.runtime["specialisation"]) for row in rows if "specialisation" in row.runtime}
    parts += [f"TensorRT-RTX compiled its kernels for these shapes {kind}ly" for kind in kinds]
    return parts + state_lines(report.settings["gpu_states"])


def _number(value: float | None, column: _Column) -> str:
    return column.missing if value is None else format(value, column.form)
