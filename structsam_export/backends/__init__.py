"""BACKENDS: every way to run a bundle. The order is the preference of `auto`."""

from __future__ import annotations

from structsam.errors import UserError
from structsam_export.backends.base import Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.backends.onnxruntime_backend import OnnxRuntimeBackend

BACKENDS: dict[str, Backend] = {
    "onnxruntime-cuda": OnnxRuntimeBackend("onnxruntime-cuda", "CUDAExecutionProvider"),
    "onnxruntime": OnnxRuntimeBackend("onnxruntime", "CPUExecutionProvider"),
}

__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "RunOptions", "Runner", "find_backend"]


def find_backend(name: str) -> Backend:
    """Return the backend of that name; `auto` is the first one that runs here.

    Raises:
        UserError: unknown name (the message lists the valid ones), or none runs here.
    """
    if name == "auto":
        for backend in BACKENDS.values():
            if not backend.needs_engine and backend.why_unavailable() is None:
                return backend
        raise UserError("no backend runs here. Install one with `pip install 'structsam[cpu]'`")
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}. Choose one of: auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]
