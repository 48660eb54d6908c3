"""Measure bundles: latency and memory of every bundle x backend x network, beside its cost.

Every row lives in a process of its own (`benchmark_row`), so that its peak memory is its own. The
rows of the same backend and network take turns, so that a drift of the machine hits all of them.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bench.cost_card import CostCard, cost_card
from structsam_export.bench.encoders import (
    STOCK,
    UNMERGED,
    attention_form_of,
    batch_of,
    is_made_here,
    make_stock,
    make_unmerged,
    prepare,
)
from structsam_export.bench.report import TIMED, BenchReport, BenchRow
from structsam_export.bench.turns import AS_USUAL, Procedure, Say, measure
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.graph.attention_choice import unmerged_forms
from structsam_export.graph.precisions import float_type
from structsam_export.machine import gemm_rate, gpu_gemm_rate, hardware, tool_versions
from structsam_export.runtimes import find_backend


def bench(
    bundles: Sequence[Bundle | str | Path],
    backends: Sequence[str] = ("auto",),
    baselines: bool = False,
    procedure: Procedure = AS_USUAL,
    keep: Path | None = None,
    say: Say = lambda text: None,
) -> BenchReport:
    """Print what every bundle has to cost, then measure it.

    Args:
        backends: keys of `BACKENDS`, or `auto` for the best one that runs each bundle here.
        baselines: also measure the stock encoder and our export without merging, both made on
            the fly with random weights (needs torch).
        keep: folder for the baselines; what lies there from an earlier time is reused.

    Raises:
        UserError: nothing to measure, a bundle that cannot be opened, an unknown backend, or a
            required backend that cannot run.
    """
    if not bundles or not backends:
        raise UserError("nothing to measure. Give at least one bundle and one backend")
    threads = procedure.options.threads
    opened = [b if isinstance(b, Bundle) else open_bundle(b) for b in bundles]
    chosen = {
        (index, name): None
        for index, bundle in enumerate(opened)
        for name in (find_backend(b, bundle).name for b in (*backends, *procedure.require))
    }
    names = list(dict.fromkeys(name for _, name in chosen))
    rates = {("cpu", "fp32"): gemm_rate(threads)}
    for precision in {"fp32", *(float_type(bundle.precision) for bundle in opened)}:
        rates["gpu", precision] = gpu_gemm_rate(precision)
    with tempfile.TemporaryDirectory(prefix="structsam-bench-") as scratch:
        scratched = keep or Path(scratch)
        base = list(make_baselines(opened, names, scratched, say)) if baselines else []
        cards = {id(b): cost_card(b, rates["cpu", "fp32"]) for b in [b for _, b in base] + opened}
        for card in cards.values():
            for line in card.lines() if card else ():
                say(line)
        jobs: list[tuple[BenchRow, Bundle]] = []
        for name in names:
            for role, bundle in base:
                prepare(bundle, name, say)
                jobs.append((_row(bundle, role, name, "encoder"), bundle))
            own = [b for index, b in enumerate(opened) if (index, name) in chosen]
            for bundle in filter(is_made_here, own):
                prepare(bundle, name, say)
            jobs += [(_row(bundle, "bundle", name, "encoder"), bundle) for bundle in own]
            with_decoder = [bundle for bundle in own if "decoder" in bundle.parts]
            decoders = {_decoder_of(bundle): bundle for bundle in reversed(with_decoder)}
            for bundle in reversed(decoders.values()):
                jobs.append((_row(bundle, "bundle", name, "decoder"), bundle))
        groups = _groups(jobs, procedure.interleave)
        states = [measure(group, procedure, say) for group in groups]
        _compare(jobs, cards, rates)
    return BenchReport(
        rows=[row for row, _ in jobs],
        cards=[card for card in cards.values() if card],
        settings={
            "runs": procedure.runs,
            "warmup": procedure.warmup,
            "threads": threads,
            "interleaved": procedure.interleave,
            "timed": TIMED,
            "gpu_states": [state for state in states if state],
            "gemm_gflops": {
                " ".join(key): round(rate / 1e9, 1) for key, rate in rates.items() if rate
            },
        },
        hardware=hardware(),
        versions=tool_versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
    )


def make_baselines(
    bundles: Sequence[Bundle], backends: Sequence[str], scratch: Path, say: Say
) -> Iterator[tuple[str, Bundle]]:
    """One stock encoder per model and batch, one unmerged per precision and attention, too.

    Both are at the trained input size, whatever those of the bundles. Unmerged ones have the
    bundles' forms of attention, and those that are faster on a backend where nothing merges.
    """
    from structsam.merging.attention_forms import form_in_name

    seen = set()
    for bundle in sorted(bundles, key=lambda bundle: bool(bundle.model.size)):
        model, batch = bundle.model.name, batch_of(bundle)
        many = f"-batch{batch}" if batch > 1 else ""
        stock = f"{STOCK}-{model}{many}"
        if stock not in seen:
            seen.add(stock)
            yield STOCK, make_stock(bundle, scratch / stock, say)
        kind = float_type(bundle.precision)
        for attention in (attention_form_of(bundle), *unmerged_forms(backends, kind)):
            form = f"-{named}" if (named := form_in_name(attention)) else ""
            unmerged = f"{UNMERGED}-{model}-{kind}{form}{many}"
            if unmerged not in seen:
                seen.add(unmerged)
                yield UNMERGED, make_unmerged(bundle, attention, scratch / unmerged, say)


def _decoder_of(bundle: Bundle) -> str | None:
    """Return what tells decoders apart: merging does not touch them, so most bundles share one.

    None for an encoder alone.
    """
    if "decoder" not in bundle.parts:
        return None
    file = bundle.part("decoder").file
    record = bundle.files.get(file)
    return record.sha256 if record else str(bundle.path)


def _row(bundle: Bundle, role: str, backend: str, part: PartName) -> BenchRow:
    parity = bundle.parity_verdict.verdict if bundle.parity_verdict else "not checked"
    return BenchRow(
        bundle=bundle.name,
        role=role,
        model=bundle.model.name,
        precision=bundle.precision,
        backend=backend,
        part=part,
        batch=batch_of(bundle) if part == "encoder" else 1,
        random_weights=bundle.has_random_weights,
        parity=parity if role == "bundle" else "baseline",
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


def _compare(
    jobs: Sequence[tuple[BenchRow, Bundle]],
    cards: dict[int, CostCard | None],
    rates: dict[tuple[str, str], float | None],
) -> None:
    """Set every encoder beside its cost and beside the fastest baselines of model and backend."""
    base: dict[Any, BenchRow] = {}
    unmerged = [row for row, _ in jobs if row.role in (STOCK, UNMERGED) and row.median_ms]
    for row in sorted(unmerged, key=lambda row: row.median_ms or 0.0, reverse=True):
        base[_key(row.role, row)] = row  # the fastest one comes last
    decoders = {
        (row.backend, _decoder_of(bundle)): row.median_ms
        for row, bundle in jobs
        if row.part == "decoder"
    }
    for row, bundle in jobs:
        card = cards[id(bundle)]
        if row.part != "encoder":
            continue
        row.gmac = None if card is None else card.gmac
        if row.median_ms is None:
            continue
        decoder_ms = decoders.get((row.backend, _decoder_of(bundle)))
        if decoder_ms is not None and row.batch == 1:
            row.with_decoder_ms = row.median_ms + decoder_ms
        on_cpu = row.runtime.get("device", row.backend) in _ON_CPU
        rate = rates.get(("cpu", "fp32") if on_cpu else ("gpu", float_type(row.precision)))
        if rate and card is not None:
            ms = row.device_ms or row.median_ms
            row.of_gemm_rate = 2e9 * card.executed_gmac * row.batch / rate * 1e3 / ms
        for role in (STOCK, UNMERGED):
            baseline = base.get(_key(role, row))
            if baseline and baseline.median_ms and baseline.first_ms and row.first_ms:
                row.speedup[role] = baseline.median_ms / row.median_ms
                row.first_speedup[role] = baseline.first_ms / row.first_ms


#: What `describe` or a row says where the CPU computes; everything else is a GPU.
_ON_CPU = ("cpu", "onnxruntime")


def _key(role: str, row: BenchRow) -> tuple[Any, ...]:
    """What a baseline and the rows it is compared with have in common."""
    kind = None if role == STOCK else float_type(row.precision)
    return role, row.model, row.backend, row.batch, kind
