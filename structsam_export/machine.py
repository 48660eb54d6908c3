"""What reports say about the machine: processor, GPU, matrix product rate, package versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_TIMEOUT = 60  # seconds
_REPORTED_PACKAGES = (
    "structsam", "torch", "torchvision", "segment-anything", "safetensors", "onnx", "onnxscript",
    "onnx-ir", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx",
    "cuda-bindings", "numpy", "pillow",
)  # fmt: skip

_GEMM = """
import time
import numpy as np
n = 2048
a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
best = float("inf")
for _ in range(8):
    start = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - start)
print(2 * n**3 / best)
"""
_COPY = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
threads, size = int(sys.argv[1]), 1 << 25
source, target = np.ones(size, np.float32), np.empty(size, np.float32)
parts = [slice(i * size // threads, (i + 1) * size // threads) for i in range(threads)]
best = float("inf")
with ThreadPoolExecutor(threads) as pool:
    for _ in range(8):
        start = time.perf_counter()
        list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
        best = min(best, time.perf_counter() - start)
print(2 * source.nbytes / best)
"""
_GPU_GEMM = """
import sys, torch
torch.backends.cuda.matmul.allow_tf32 = False
n = 8192
kind = {"fp16": torch.float16, "fp32": torch.float32}[sys.argv[1]]
a = torch.randn(n, n, device="cuda", dtype=kind)
best = float("inf")
for _ in range(8):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    a @ a
    end.record()
    end.synchronize()
    best = min(best, start.elapsed_time(end) / 1e3)
print(2 * n**3 / best)
"""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory, GPU and system, ready for JSON."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib("MemTotal"),
        "gpu": _gpu_name(),
        "board": first_line("/proc/device-tree/model"),
        "system": platform.platform(terse=True),
    }


def gemm_rate(threads: int | None) -> float | None:
    """Measure what a 2048 x 2048 float32 matrix product of numpy reaches, in FLOP/s.

    It runs in a process of its own, because numpy fixes its threads when it is loaded.

    Args:
        threads: None leaves the number to numpy.
    """
    limits = {name: str(threads) for name in _THREAD_VARIABLES} if threads else {}
    return _number(_output([sys.executable, "-c", _GEMM], {**os.environ, **limits}))


def copy_rate(threads: int) -> float | None:
    """Measure what copying 128 MiB of memory reaches, in bytes/s, read and written ones."""
    return _number(_output([sys.executable, "-c", _COPY, str(threads)]))


def gpu_gemm_rate(precision: str) -> float | None:
    """Measure what an 8192 x 8192 matrix product of torch reaches on the GPU, in FLOP/s.

    Args:
        precision: `fp16` or `fp32`.

    Returns:
        None without torch or a GPU.
    """
    if _gpu_name() is None:
        return None
    return _number(_output([sys.executable, "-c", _GPU_GEMM, precision]))


def tool_versions() -> dict[str, str]:
    """Return the versions of Python, the system and the packages that matter to an export."""
    versions = {"python": platform.python_version(), "system": platform.system()}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def version_lines() -> list[str]:
    """Say which versions are here, one package a line, this one first; nothing is imported."""
    found = tool_versions()
    lines = [f"structsam-export {found.pop('structsam', 'not installed as a package')}"]
    lines += [f"{name} {version}" for name, version in found.items()]
    absent = [
        name for name in ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx") if name not in found
    ]
    return lines + [f"{name} not installed" for name in absent]


def free_memory_gib() -> float | None:
    """Return how much memory programs can still take; None where the system does not tell."""
    return _memory_gib("MemAvailable")


def query_gpus(*names: str) -> list[dict[str, str]]:
    """Ask `nvidia-smi` for its fields `names`, such as `driver_version`; one dict per GPU.

    Raises:
        OSError, subprocess.SubprocessError: there is no `nvidia-smi`, or it failed.
        ValueError: it answered something else.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    rows = [line.split(", ") for line in run_program(command).splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def run_program(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed.

    Raises:
        OSError, subprocess.SubprocessError: it is not there, failed, or took more than a minute.
    """
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=True
    )
    return done.stdout.strip()


def _cpu_name() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    if sys.platform == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        if name:
            return name
    return platform.processor() or platform.machine()


def cpu_kind() -> tuple[str, frozenset[str]]:
    """Return vendor and instruction sets of an x86 CPU, as Linux names them; else nothing.

    >>> vendor, instructions = cpu_kind()  # such as "GenuineIntel", {"avx2", "avx512f", ...}
    """
    told: dict[str, str] = {}
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    return told.get("vendor_id", ""), frozenset(told.get("flags", "").split())


def usable_cores() -> int | None:
    """Return how many cores this process may use; None where the system does not tell."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count()


def _memory_gib(entry: str) -> float | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith(f"{entry}:"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None


def _gpu_name() -> str | None:
    try:
        return "; ".join(gpu["name"] for gpu in query_gpus("name")) or None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def first_line(file: str | Path) -> str | None:
    """Return the first line of a file; None where it cannot be read."""
    lines = _lines(file)
    return lines[0].strip("\x00 ") if lines else None


def _lines(file: str | Path) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        return run_program(command, environment)
    except (OSError, subprocess.SubprocessError):
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
