"""What plan outputs cost on ONNX Runtime: the row of docs/performance.md.

    python scripts/plan_outputs_cost.py --model vit_b --rate 0.5 --threads 2

One encoder of random weights is exported with and without plan outputs. Both are open in one
process and run in turn, so that what else the machine does meets all alike; beside wall time stands
the CPU time of the process, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from structsam.apply import apply_merging
from structsam.models import model_spec
from structsam.models.load import build_sam
from structsam_export.bench.row import feeds_of
from structsam_export.bundle.manifest import Part
from structsam_export.graph.exporter import export_encoder
from structsam_export.graph.modules import EncoderModule
from structsam_export.runtimes.onnxruntime_backend import OnnxRuntimeRunner


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    encoder = build_sam(model_spec(options.model)).image_encoder
    apply_merging(encoder, rate=options.rate)
    with tempfile.TemporaryDirectory() as folder:
        files = {shown: Path(folder) / f"{shown}.onnx" for shown in (False, True)}
        parts: dict[bool, Part] = {
            shown: export_encoder(
                EncoderModule(encoder, options.precision, shown), file.parent, file.name
            )
            for shown, file in files.items()
        }
        del encoder
        with (
            OnnxRuntimeRunner(
                parts[False], files[False], "CPUExecutionProvider", options.threads
            ) as without,
            OnnxRuntimeRunner(
                parts[True], files[True], "CPUExecutionProvider", options.threads
            ) as having,
        ):
            feeds = feeds_of(parts[True])
            every = [spec.name for spec in parts[True].all_outputs]
            ways: dict[str, Callable[[], object]] = {
                "without plan outputs": lambda: without.run(feeds),
                "with them, not asked": lambda: having.run(feeds),
                "with them, asked": lambda: having.run(feeds, every),
            }
            times = measure(ways, options.rounds)
    base = next(iter(times.values()))
    for name, own in times.items():
        told = []
        for kind, seconds, reference in zip(("wall", "CPU"), own, base, strict=True):
            low, middle, high = np.percentile(seconds / reference, [25, 50, 75])
            told.append(
                f"{kind} {np.median(seconds):.2f} s, ratio {middle:.3f} ({low:.3f} to {high:.3f})"
            )
        print(f"{name}: {'; '.join(told)}")
    print(f"medians and quartiles of {options.rounds} rounds")
    specs = parts[True].plan_outputs
    size = sum(prod(int(side) for side in spec.shape) * 4 for spec in specs)
    print(f"{len(specs)} plan outputs, {size} bytes an image")


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Run all ways in turn, after one warm-up of each: wall and CPU seconds [2, rounds] of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(-1, rounds):
        for name in names[turn % 3 :] + names[: turn % 3]:  # another one is first each time
            start = time.perf_counter(), time.process_time()
            ways[name]()
            if turn >= 0:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.array(own).T for name, own in times.items()}


if __name__ == "__main__":
    main()
