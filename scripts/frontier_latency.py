"""Latency of the points of `frontier_study.sh`, beside what each loses.

The study's bundles are named `PRECISION-SIZE-METHOD-RATE-PLACEMENT`; `bench` timed those of one
input size in turns, beside the stock encoder, into OUT/latency-SIZE/bench.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from fidelity_tables import points

from structsam.evaluation.summary import RunSummary

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_PRECISIONS = ("fp32", "int8-fp32")


@dataclass
class Latencies:
    """What was timed.

    Args:
        ms: median of every (bundle, backend).
        stock_ms: of stock segment_anything in FP32, by backend: the median of the group of
            every input size.
        machine: where.
        date: of the last one.
    """

    ms: dict[tuple[str, str], float] = field(default_factory=dict)
    stock_ms: dict[str, list[float]] = field(default_factory=dict)
    machine: str = ""
    date: str = ""

    @property
    def backends(self) -> list[str]:
        """Those that timed anything, in the order of `TITLES`."""
        found = {backend for _, backend in self.ms}
        return sorted(found, key=lambda name: [*TITLES, name].index(name))

    def of(self, run: RunSummary, backend: str) -> float | None:
        """Return the ms of a run's encoder."""
        return self.ms.get((point_name(run), backend))


def read_latencies(out: Path) -> Latencies:
    """Read all of OUT/latency-*; what did not run is left out."""
    found = Latencies()
    for file in sorted(out.glob("latency-*/bench.json")):
        report = json.loads(file.read_text("utf-8"))
        found.machine, found.date = str(report["hardware"].get("cpu")), report["date"][:10]
        for row in report["rows"]:
            if row["part"] != "encoder" or row["status"] != "measured":
                continue
            if row["role"] == "stock":
                found.stock_ms.setdefault(row["backend"], []).append(row["median_ms"])
            elif row["role"] == "bundle":
                found.ms[row["bundle"], row["backend"]] = row["median_ms"]
    return found


def point_name(run: RunSummary) -> str:
    """Return the name of a run's bundle.

    >>> point_name(RunSummary({"image_size": 768, "merging": None, "precision": "fp32"}, False))
    'fp32-768-structsam-0-attention'
    """
    if run.facts.get("embedding") == "upsample":
        return ""  # not timed: it adds a resize
    merging = run.facts.get("merging") or {}
    parts = (
        run.facts.get("precision") or "fp32",
        run.facts.get("image_size") or 1024,
        merging.get("method", "structsam"),
        f"{merging.get('rate', 0):g}",
        merging.get("placement", "attention"),
    )
    return "-".join(map(str, parts))


def latency_table(latencies: Latencies, runs: Iterable[RunSummary]) -> list[str]:
    """A row for every point: ms of each precision and runtime, then what it loses.

    Columns that nothing was measured for are left out.
    """
    of_name: dict[str, RunSummary] = {}
    for run in runs:
        of_name.setdefault(point_name(run), run)
    names = {name.removeprefix(f"{p}-") for (name, _) in latencies.ms for p in _prefix(name)}
    columns = [(precision, backend) for backend in latencies.backends for precision in _PRECISIONS]
    titles = [f"{TITLES.get(b, b)}, {p.partition('-')[0].upper()}, ms" for p, b in columns]
    lost = ["mIoU, FP32", "mIoU, INT8", "boundary IoU, INT8", "disagreement, INT8"]
    head = ["point", "GMAC", *titles, *lost]
    rows: list[tuple[float, list[str]]] = []
    for name in names:
        floats, ints = (of_name.get(f"{precision}-{name}") for precision in _PRECISIONS)
        known = ints or floats
        if known is None:
            continue
        gmac = float(known.facts["gmac"])
        times = [latencies.ms.get((f"{p}-{name}", b)) for p, b in columns]
        cells = [known.label, f"{gmac:.1f}", *(f"{ms:.0f}" if ms else "" for ms in times)]
        cells += [_difference(floats, "iou"), _difference(ints, "iou")]
        cells += [_difference(ints, "boundary_iou"), _disagreement(ints)]
        rows.append((-gmac, cells))
    table = [head, ["---"] * len(head), *(cells for _, cells in sorted(rows))]
    filled = [any(row[column] for row in table[2:]) for column in range(len(head))]
    return [f"| {' | '.join(compress(row, filled))} |" for row in table]


def _prefix(name: str) -> Sequence[str]:
    return [p for p in reversed(_PRECISIONS) if name.startswith(f"{p}-")][:1]


def _difference(run: RunSummary | None, metric: str) -> str:
    found = None if run is None or run.baseline else run.metrics.get(metric)
    return "" if found is None else points(found.difference)


def _disagreement(run: RunSummary | None) -> str:
    moved = None if run is None or run.disagreement is None else run.disagreement.value
    return "" if moved is None else f"{100 * moved:.1f}"


def of_backend(latencies: Latencies, backend: str) -> Callable[[Any], float | None]:
    """Return what a chart has across: the ms of a run on that backend."""
    return lambda run: latencies.of(run, backend)
