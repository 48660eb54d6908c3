"""Measure rows that take turns, each in a process of its own, and watch the GPU meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from structsam.errors import UserError
from structsam_export.bench.gpu_state import gpu_state
from structsam_export.bench.process import RowDied, RowNotRun, RowProcess
from structsam_export.bench.report import BenchRow
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import RunOptions

Say = Callable[[str], None]


@dataclass(frozen=True)
class Procedure:
    """How every row is measured.

    Args:
        runs: times measured per row, after `warmup` others.
        interleave: keep the rows of one backend and network open together and let them take
            turns; False opens one at a time, for machines with little memory.
        require: backends that must run; one that cannot raises instead of being "not run".
        options: threads, weights for the torch backend, and which engine to use.
    """

    runs: int = 5
    warmup: int = 2
    interleave: bool = True
    require: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.runs < 1 or self.warmup < 0:
            raise UserError(
                f"{self.runs} runs after {self.warmup} for warm-up: use at least 1 and 0"
            )
        if self.options.threads is not None and self.options.threads < 1:
            raise UserError(f"threads is {self.options.threads}. Use at least 1")


AS_USUAL = Procedure()


class _Row:
    """A row that is being measured.

    Attributes:
        samples: (ms of a call, ms on the GPU or None) of all turns so far.
    """

    def __init__(self, row: BenchRow, process: RowProcess) -> None:
        self.row, self.process = row, process
        self.samples: list[tuple[float, float | None]] = []

    def take_turn(self) -> None:
        self.samples.append(self.process.run())

    def warm_up(self) -> None:
        self.row.warm_up = self.process.warm_up()

    def finish(self) -> None:
        self.row.runtime, self.row.peak_memory_mib = self.process.finish()


def measure(
    group: Sequence[tuple[BenchRow, Bundle]], procedure: Procedure, say: Say
) -> dict[str, Any] | None:
    """Open all rows of a group, let them take turns, and fill them in.

    After `warmup` turns those on a GPU run on until their times are steady; see `steady`.

    Returns:
        The GPU's state before and after, as `state_lines` takes it; None where the CPU computes.
    """
    alive: list[_Row] = []

    def attempt(measured: _Row, work: Callable[[_Row], None]) -> None:
        try:
            work(measured)
        except (RowNotRun, RowDied) as reason:
            alive.remove(measured)
            _give_up(measured.row, reason, procedure.require, say)

    def every(work: Callable[[_Row], None]) -> None:
        for measured in list(alive):
            attempt(measured, work)

    with ExitStack() as processes:
        for row, bundle in group:
            say(f"opening {_title(row)}")
            process = RowProcess(bundle, row.backend, row.part, procedure.options)
            alive.append(_Row(row, processes.enter_context(process)))
            attempt(alive[-1], lambda measured: measured.process.wait_until_ready())
        for _ in range(procedure.warmup):
            every(_Row.take_turn)
        if procedure.warmup:
            every(_Row.warm_up)
        before = gpu_state()
        for _ in range(procedure.runs):
            every(_Row.take_turn)
        after = gpu_state()
        every(_Row.finish)  # an ending process would disturb the others' turns
    for measured in alive:
        measured.row.set_samples(measured.samples, procedure.warmup)
        say(f"{_title(measured.row)}: {measured.row.median_ms:.1f} ms")
    if not any(measured.row.device_samples_ms for measured in alive):
        return None
    return {"rows": f"{group[0][0].backend}, {group[0][0].part}", "before": before, "after": after}


def _title(row: BenchRow) -> str:
    return f"{row.bundle}, {row.part} on {row.backend}"


def _give_up(row: BenchRow, reason: Exception, require: Sequence[str], say: Say) -> None:
    row.status = "not run" if isinstance(reason, RowNotRun) else "failed"
    row.reason = str(reason)
    say(f"{_title(row)}: {row.status}: {reason}")
    if row.backend in require and row.role == "bundle":
        raise UserError(f"required backend {row.backend} cannot run: {reason}")
