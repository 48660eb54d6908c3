"""Export token-merged SAM to ONNX and TensorRT, run it anywhere, and prove that it is the same.

Importing this package loads neither torch nor onnxruntime; the names below load on first use.
"""

from importlib import import_module
from typing import Any

_HOME_OF = {
    "export": "structsam_export.pipeline",
    "check": "structsam_export.parity.check",
    "build": "structsam_export.engines.build",
    "open_bundle": "structsam_export.bundle.folder",
}

__all__ = ["build", "check", "export", "open_bundle"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'structsam_export' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
