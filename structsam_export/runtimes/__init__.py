"""BACKENDS: every way to run a bundle. The order is the preference of `auto`."""

from __future__ import annotations

from typing import get_args

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.runtimes.base import Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from structsam_export.runtimes.tensorrt_backend import TensorRTBackend
from structsam_export.runtimes.tensorrt_module import FLAVOURS
from structsam_export.runtimes.torch_backend import TorchBackend
from structsam_export.runtimes.torch_compile_backend import TorchCompileBackend

BACKENDS: dict[str, Backend] = {
    "tensorrt": TensorRTBackend(FLAVOURS["tensorrt"]),
    "tensorrt-rtx": TensorRTBackend(FLAVOURS["tensorrt-rtx"]),
    "onnxruntime-cuda": OnnxRuntimeBackend("onnxruntime-cuda", "CUDAExecutionProvider"),
    "onnxruntime": OnnxRuntimeBackend("onnxruntime", "CPUExecutionProvider"),
    "torch": TorchBackend(),
    "torch-compile": TorchCompileBackend(),
}

__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "RunOptions", "Runner", "find_backend"]


def find_backend(name: str, bundle: Bundle | None = None) -> Backend:
    """Return the backend of that name; `auto` is the first one that runs here.

    Args:
        bundle: what is to run; without it `auto` leaves out the backends that need an engine.

    Raises:
        UserError: unknown name (the message lists the valid ones), or none runs here.
    """
    if name == "auto":
        for backend in BACKENDS.values():
            if _runs(backend, bundle):
                return backend
        raise UserError("no backend runs here. Install one with `pip install 'structsam[cpu]'`")
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}. Choose one of: auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


def _runs(backend: Backend, bundle: Bundle | None) -> bool:
    if not backend.needs_engine:
        return backend.why_unavailable() is None
    if bundle is None:
        return False
    try:
        for part in get_args(PartName):
            backend.runner(bundle, part, RunOptions())
    except BackendUnavailable:
        return False
    return True
