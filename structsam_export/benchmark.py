"""Measure bundles: latency and memory of every bundle x backend x network, beside its cost.

Every row lives in a process of its own (`benchmark_row`), so that its peak memory is its own. The
rows of the same backend and network take turns, so that a drift of the machine hits all of them.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from structsam.errors import UserError
from structsam_export.backends import RunOptions, find_backend
from structsam_export.benchmark_baselines import (
    STOCK,
    UNMERGED,
    make_stock,
    make_unmerged,
    prepare,
)
from structsam_export.benchmark_process import RowDied, RowNotRun, RowProcess
from structsam_export.benchmark_report import TIMED, BenchReport, BenchRow, render_table
from structsam_export.bundle import Bundle, PartName, open_bundle
from structsam_export.cost_card import CostCard, cost_card
from structsam_export.machine import gemm_rate, hardware, tool_versions

Say = Callable[[str], None]

__all__ = ["BenchReport", "BenchRow", "bench", "render_table"]


def bench(
    bundles: Sequence[Bundle | str | Path],
    backends: Sequence[str] = ("auto",),
    baselines: bool = False,
    threads: int | None = None,
    runs: int = 5,
    warmup: int = 2,
    checkpoint: Path | None = None,
    target: str | None = None,
    interleave: bool = True,
    require: Sequence[str] = (),
    say: Say = lambda text: None,
) -> BenchReport:
    """Print what every bundle has to cost, then measure it.

    Args:
        backends: keys of `BACKENDS`, or `auto` for the best one that runs each bundle here.
        baselines: also measure the stock encoder and our export without merging, both made on
            the fly with random weights (needs torch).
        threads: CPU threads; None leaves the choice to the backend.
        runs: times measured per row, after `warmup` others.
        checkpoint: weights for the torch backend.
        target: which engine to use; None takes the one for this GPU.
        interleave: keep the rows of one backend and network open together and let them take
            turns; False opens one at a time, for machines with little memory.
        require: backends that must run; one that cannot raises instead of being "not run".

    Raises:
        UserError: nothing to measure, a bundle that cannot be opened, an unknown backend, or a
            required backend that cannot run.
    """
    _check(bundles, backends, runs, warmup, threads)
    options = RunOptions(threads, checkpoint, target)
    opened = [b if isinstance(b, Bundle) else open_bundle(b) for b in bundles]
    chosen = {
        (index, name): None
        for index, bundle in enumerate(opened)
        for name in (find_backend(b, bundle).name for b in (*backends, *require))
    }
    names = list(dict.fromkeys(name for _, name in chosen))
    rate = gemm_rate(threads)
    with tempfile.TemporaryDirectory(prefix="structsam-bench-") as scratch:
        base = list(_make_baselines(opened, Path(scratch), say)) if baselines else []
        cards = {id(b): cost_card(b, rate) for b in [b for _, b in base] + opened}
        for card in cards.values():
            for line in card.lines() if card else ():
                say(line)
        jobs: list[tuple[BenchRow, Bundle]] = []
        for name in names:
            for role, bundle in base:
                prepare(bundle, name, say)
                jobs.append((_row(bundle, role, name, "encoder"), bundle))
            for part in get_args(PartName):
                jobs += [
                    (_row(bundle, "bundle", name, part), bundle)
                    for index, bundle in enumerate(opened)
                    if (index, name) in chosen
                ]
        for group in _groups(jobs, interleave):
            _measure(group, options, runs, warmup, require, say)
        _compare(jobs, cards)
    return BenchReport(
        rows=[row for row, _ in jobs],
        cards=[card for card in cards.values() if card],
        settings={
            "runs": runs,
            "warmup": warmup,
            "batch": 1,
            "threads": threads,
            "interleaved": interleave,
            "timed": TIMED,
            "gemm_gflops": None if rate is None else round(rate / 1e9, 1),
        },
        hardware=hardware(),
        versions=tool_versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
    )


def _check(
    bundles: Sequence[Any], backends: Sequence[str], runs: int, warmup: int, threads: int | None
) -> None:
    if not bundles or not backends:
        raise UserError("nothing to measure. Give at least one bundle and one backend")
    if runs < 1 or warmup < 0:
        raise UserError(f"{runs} runs after {warmup} for warm-up: use at least 1 and 0")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}. Use at least 1")


def _make_baselines(
    bundles: Sequence[Bundle], scratch: Path, say: Say
) -> Iterator[tuple[str, Bundle]]:
    """One stock encoder per model, and one unmerged per model and precision."""
    seen = set()
    for bundle in bundles:
        model = bundle.manifest["model"]["name"]
        for role, make, key in (
            (STOCK, make_stock, (STOCK, model)),
            (UNMERGED, make_unmerged, (UNMERGED, model, bundle.precision)),
        ):
            if key not in seen:
                seen.add(key)
                yield role, make(bundle, scratch / "-".join(key), say)


def _row(bundle: Bundle, role: str, backend: str, part: PartName) -> BenchRow:
    parity = bundle.manifest.get("parity") or {}
    return BenchRow(
        bundle=bundle.name,
        role=role,
        model=bundle.manifest["model"].get("name", "unknown"),
        precision=bundle.precision,
        backend=backend,
        part=part,
        random_weights=bundle.has_random_weights,
        parity=parity.get("verdict", "not checked") if role == "bundle" else "baseline",
    )


def _groups(
    jobs: Sequence[tuple[BenchRow, Bundle]], interleave: bool
) -> Iterator[list[tuple[BenchRow, Bundle]]]:
    """Split into sets of rows that take turns."""
    groups: dict[Any, list[tuple[BenchRow, Bundle]]] = {}
    for index, (row, bundle) in enumerate(jobs):
        key = (row.backend, row.part) if interleave else index
        groups.setdefault(key, []).append((row, bundle))
    yield from groups.values()


def _measure(
    group: Sequence[tuple[BenchRow, Bundle]],
    options: RunOptions,
    runs: int,
    warmup: int,
    require: Sequence[str],
    say: Say,
) -> None:
    """Open all rows of a group, let them take turns, and fill them in."""
    with ExitStack() as processes:
        alive: list[tuple[BenchRow, RowProcess, list[float]]] = []
        for row, bundle in group:
            title = f"{row.bundle}, {row.part} on {row.backend}"
            say(f"opening {title}")
            try:
                process = RowProcess(bundle, row.backend, row.part, row.role, options)
                processes.enter_context(process)
                process.wait_until_ready()
                alive.append((row, process, []))
            except (RowNotRun, RowDied) as reason:
                _give_up(row, reason, require, say)
        for turn in range(warmup + runs):
            for entry in list(alive):
                row, process, samples = entry
                try:
                    samples.append(process.run())
                    if turn == warmup + runs - 1:
                        row.runtime, row.peak_memory_mib = process.finish()
                        row.set_samples(samples, warmup)
                        say(f"{row.bundle}, {row.part} on {row.backend}: {row.median_ms:.1f} ms")
                except (RowNotRun, RowDied) as reason:
                    alive.remove(entry)
                    _give_up(row, reason, require, say)


def _give_up(row: BenchRow, reason: Exception, require: Sequence[str], say: Say) -> None:
    row.status = "not run" if isinstance(reason, RowNotRun) else "failed"
    row.reason = str(reason)
    say(f"{row.bundle}, {row.part} on {row.backend}: {row.status}: {reason}")
    if row.backend in require and row.role == "bundle":
        raise UserError(f"required backend {row.backend} cannot run: {reason}")


def _compare(jobs: Sequence[tuple[BenchRow, Bundle]], cards: dict[int, CostCard | None]) -> None:
    """Set every encoder beside its cost and beside the baselines of its model and backend."""
    base = {
        (row.role, row.model, row.backend, row.precision if row.role == UNMERGED else None): row
        for row, _ in jobs
        if row.role in (STOCK, UNMERGED)
    }
    for row, bundle in jobs:
        card = cards[id(bundle)]
        if row.part != "encoder" or card is None:
            continue
        row.gmac = card.gmac
        if row.median_ms is None:
            continue
        on_cpu = row.backend == "onnxruntime" or row.runtime.get("device") == "cpu"
        if on_cpu and card.ideal_ms is not None:
            row.of_gemm_rate = card.ideal_ms / row.median_ms
        for role in (STOCK, UNMERGED):
            key = (role, row.model, row.backend, row.precision if role == UNMERGED else None)
            baseline = base.get(key)
            if baseline and baseline.median_ms and baseline.first_ms and row.first_ms:
                row.speedup[role] = baseline.median_ms / row.median_ms
                row.first_speedup[role] = baseline.first_ms / row.first_ms
