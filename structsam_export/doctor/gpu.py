"""The GPU, asked in two ways: by the driver's own program, and by CUDA, as a runner does."""

from __future__ import annotations

from typing import Any

from structsam_export.machine import query_gpus
from structsam_export.runtimes.cuda_memory import open_cuda

_FIELDS = ("name", "driver_version", "compute_cap", "memory.free", "memory.total", "power.limit")


def nvidia_smi() -> dict[str, Any]:
    """Return `gpus`, one dict of texts each.

    Raises:
        OSError, subprocess.SubprocessError: there is no `nvidia-smi`, or it failed.
    """
    return {"gpus": query_gpus(*_FIELDS)}


def cuda() -> dict[str, Any]:
    """Return the current device of CUDA: `gpu`, `target`, `driver_supports`, `free_mib`.

    Raises:
        BackendUnavailable: cuda-bindings, the driver or a device is missing.
    """
    runtime = open_cuda("tensorrt")
    gpu = runtime.gpu()
    return {
        "gpu": gpu.name,
        "target": gpu.target,
        "driver_supports": runtime.driver_version(),
        "free_mib": runtime.free_memory() >> 20,
    }
