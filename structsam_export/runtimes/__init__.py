"""BACKENDS: every way to run a bundle. The order is the preference of `auto`, but on some CPUs."""

from __future__ import annotations

import logging

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes.auto_preference import auto_order
from structsam_export.runtimes.base import Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from structsam_export.runtimes.openvino_backend import OpenVinoBackend
from structsam_export.runtimes.tensorrt_backend import TensorRTBackend
from structsam_export.runtimes.tensorrt_module import FLAVOURS
from structsam_export.runtimes.torch_backend import TorchBackend
from structsam_export.runtimes.torch_compile_backend import TorchCompileBackend

BACKENDS: dict[str, Backend] = {
    "tensorrt": TensorRTBackend(FLAVOURS["tensorrt"]),
    "tensorrt-rtx": TensorRTBackend(FLAVOURS["tensorrt-rtx"]),
    "onnxruntime-cuda": OnnxRuntimeBackend("onnxruntime-cuda", "CUDAExecutionProvider"),
    "onnxruntime": OnnxRuntimeBackend("onnxruntime", "CPUExecutionProvider"),
    "openvino": OpenVinoBackend(),
    "torch": TorchBackend(),
    "torch-compile": TorchCompileBackend(),
}

_log = logging.getLogger("structsam_export")

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendUnavailable",
    "RunOptions",
    "Runner",
    "find_backend",
    "refuse_unread",
]


def find_backend(name: str, bundle: Bundle | None = None) -> Backend:
    """Return the backend of that name; `auto` is the first of `auto_order` that runs here.

    Args:
        name: a key of `BACKENDS`, or with a device behind a colon, such as `openvino:GPU`.
        bundle: what is to run; without it `auto` leaves out the backends that need an engine.

    Raises:
        UserError: unknown name (the message lists the valid ones), or none runs here.
    """
    if name == "auto":
        for each in auto_order(BACKENDS):
            reason = _why_not(BACKENDS[each], bundle)
            if reason is None:
                _log.debug("auto is %s", each)
                return BACKENDS[each]
            _log.debug("auto is not %s: %s", each, reason)
        raise UserError("no backend runs here. Install one with `pip install 'structsam[cpu]'`")
    key, _, device = name.partition(":")
    if key not in BACKENDS:
        raise UserError(f"unknown backend {name!r}. Choose one of: auto, {', '.join(BACKENDS)}")
    return BACKENDS[key].on(device) if device else BACKENDS[key]


def refuse_unread(checkpoint: object, backend: Backend) -> None:
    """Refuse a checkpoint for a backend that runs the bundle's own files and would not read it.

    Raises:
        UserError: there is one, and the backend is not PyTorch.
    """
    if checkpoint and not backend.needs_weights:
        raise UserError(
            f"`checkpoint=` is for `backend=torch`, and {backend.name} runs what the bundle holds. "
            "Leave one of them out"
        )


def _why_not(backend: Backend, bundle: Bundle | None) -> str | None:
    """Say why a backend cannot run the bundle here, or None."""
    if bundle is None and backend.needs_engine:
        return "it needs an engine"
    if reason := backend.why_unavailable():
        return reason
    if bundle is None or backend.needs_weights:
        return None
    try:
        for part in bundle.parts:
            backend.runner(bundle, part, RunOptions())
    except BackendUnavailable as reason:
        return str(reason)
    return None
