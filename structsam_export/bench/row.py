"""One row of a benchmark in a process of its own, so that its peak memory is that row's alone.

The process opens one network and then obeys lines on its standard input: `run` times one call,
on a GPU a second one between CUDA events; `warm up` runs until device times are steady; `end` (or
the end of the input) reports and leaves. Every answer is one line of JSON. What libraries print
goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from structsam.errors import UserError
from structsam_export.bench.steady import warm_up
from structsam_export.bundle.folder import open_bundle
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.runtimes import RunOptions, find_backend
from structsam_export.runtimes.base import Arrays


def main(arguments: list[str]) -> None:
    """Serve the row that the JSON in `arguments[0]` describes; see the module docstring."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(json.loads(arguments[0]), sys.stdin, answers)
    except UserError as reason:
        _answer(answers, not_run=str(reason))
    except Exception as error:
        traceback.print_exc()
        _answer(answers, failed=f"{type(error).__name__}: {error}".splitlines()[0])


def serve(request: dict[str, Any], commands: Iterable[str], answers: TextIO) -> None:
    """Open the network of `request` and obey `commands`.

    Args:
        request: `bundle`, `backend`, `part`, and the fields of `RunOptions`.

    Raises:
        UserError: the backend cannot run this bundle here.
    """
    bundle = open_bundle(request["bundle"], verify=False)
    checkpoint = request.get("checkpoint")
    options = RunOptions(
        threads=request.get("threads"),
        checkpoint=Path(checkpoint) if checkpoint else None,
        target=request.get("target"),
        for_timing=True,
    )
    part = bundle.part(request["part"])
    feeds = feeds_of(part)
    backend = find_backend(request["backend"], bundle)
    if backend.needs_weights and backend.why_unavailable() is None:
        from structsam_export.runtimes.torch_on_cpu import use_fast_settings

        use_fast_settings()
    with backend.runner(bundle, request["part"], options) as runner:
        _answer(answers, ready=True)
        for command in commands:
            if command.strip() == "warm up":
                _answer(answers, warm_up=warm_up(lambda: runner.device_ms(feeds)))
                continue
            if command.strip() != "run":
                break
            start = time.perf_counter()
            runner.run(feeds)
            wall = (time.perf_counter() - start) * 1e3
            _answer(answers, ms=wall, device_ms=runner.device_ms(feeds))
        _answer(answers, runtime=runner.describe(), peak_memory_mib=peak_memory_mib())


def feeds_of(part: Part) -> Arrays:
    """Return inputs for one call: noise, and one box prompt where the part takes prompts.

    Dynamic dimensions take the optimum of the profile. Times do not depend on the values: all
    shapes are static.
    """
    rng = np.random.default_rng(0)
    return {spec.name: _input(spec, part, rng) for spec in part.inputs}


def _input(spec: TensorSpec, part: Part, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(part.profile[d][1] if isinstance(d, str) else d for d in spec.shape)
    values: np.ndarray
    if spec.name == "prompt_box":
        values = np.array([[300.0, 300.0, 700.0, 700.0]])
    elif spec.name == "point_coords":
        values = np.linspace(100.0, 600.0, int(np.prod(shape))).reshape(shape)
    elif spec.name == "point_labels":
        values = np.full(shape, -1.0)  # -1 is padding; 2 and 3 are the corners of a box
        values[..., :2] = (2.0, 3.0)[: shape[-1]]
    elif spec.name in ("mask_input", "has_mask_input"):
        values = np.zeros(shape)
    else:
        values = rng.standard_normal(shape, dtype=np.float32)
    return np.ascontiguousarray(values, dtype=spec.dtype)


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None where it cannot be told.

    Linux is asked in `/proc`: its `ru_maxrss` starts at the size of the parent process.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


def _answer(answers: TextIO, **fields: Any) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
