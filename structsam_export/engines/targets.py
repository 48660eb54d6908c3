"""Which backend can build engines here, and for which GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from structsam.errors import UserError
from structsam_export.graph.precisions import float_type
from structsam_export.runtimes import BACKENDS
from structsam_export.runtimes.base import BackendUnavailable
from structsam_export.runtimes.cuda_memory import Gpu, open_cuda
from structsam_export.runtimes.tensorrt_module import (
    FLAVOURS,
    ahead_of_time_targets,
    load_module,
)

DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
ALL_TARGETS = "all"
_NO_FP32_MATMUL = "sm75"  # Turing, in TensorRT-RTX


def find_builder(targets: Sequence[str], precision: str) -> tuple[str, list[str]]:
    """Return the first backend that can build here, and why those before it cannot.

    Raises:
        BackendUnavailable: none can; every reason is named.
    """
    reasons: list[str] = []
    for backend in FLAVOURS:
        try:
            choose_targets(backend, targets, precision)
        except UserError as reason:
            reasons.append(f"{backend}: {reason}")
        else:
            return backend, reasons
    raise BackendUnavailable(f"no engine can be built here. {'; '.join(reasons)}")


def choose_targets(
    backend: str, targets: Sequence[str], precision: str
) -> tuple[list[str], str | None]:
    """Return what `build` would build for, and the GPU's name where engines are tuned on it.

    `all` leaves out what cannot be built: float32 for Turing, where TensorRT-RTX has no float32
    matmul.

    Raises:
        UserError, BackendUnavailable: as `build`.
    """
    flavour = FLAVOURS[backend]
    trt = load_module(flavour)
    gpu: Gpu | None = None
    try:
        gpu = open_cuda(flavour.extra).gpu()
    except BackendUnavailable:
        if not flavour.ahead_of_time:
            raise
    if not flavour.ahead_of_time:
        assert gpu is not None
        for target in targets:
            if target not in (gpu.target, ALL_TARGETS):
                raise UserError(
                    f"{flavour.title} builds on the GPU that will run the engine: this one is "
                    f"{gpu.target} ({gpu.name}), not {target}. Build there, or use the backend "
                    "tensorrt-rtx"
                )
        return [gpu.target], gpu.name
    known = ahead_of_time_targets(trt)
    if ALL_TARGETS in targets:
        targets = [t for t in known if float_type(precision) != "fp32" or t != _NO_FP32_MATMUL]
    chosen = list(dict.fromkeys(targets)) or ([gpu.target] if gpu else list(DEFAULT_TARGETS))
    for target in chosen:
        if target not in known:
            raise UserError(
                f"{flavour.title} {trt.__version__} cannot build for {target}. Choose from: "
                f"{' '.join(known)}, or all; or use the backend tensorrt on a GPU of another kind"
            )
        if target == _NO_FP32_MATMUL and float_type(precision) == "fp32":
            raise UserError(
                f"{flavour.title} has no float32 matmul for {target} (Turing). "
                "Export with `precision='fp16'`, or leave that target out"
            )
    return chosen, None


def can_build(backend: str) -> bool:
    """Whether engines of this backend can be built here, with or without a GPU."""
    try:
        return bool(choose_targets(backend, (), "fp16")[0])
    except UserError:
        return False


def backend_facts(name: str) -> dict[str, Any]:
    """Say of a backend `title`, why it is `unavailable` (None: it is not), and `builds_here`."""
    backend = BACKENDS[name]
    return {
        "title": backend.title,
        "unavailable": backend.why_unavailable(),
        "builds_here": backend.needs_engine and can_build(name),
    }
