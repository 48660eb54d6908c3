"""Show inner tensors of a shipped ONNX file without touching it. Needs onnx, not torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx


def add_outputs(source: Path, names: list[str]) -> Path:
    """Write a temporary copy of an ONNX file with more inner int64 tensors as outputs.

    The copy lies beside the original when that has external data, which is found by its relative
    name only; else in the system's temporary folder, so that a read-only bundle works.

    Returns:
        The path of the copy; the caller deletes it.
    """
    model = onnx.load(source, load_external_data=False)
    for name in names:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        )
    beside = source.with_name(f"{source.name}.data").is_file()
    handle, copy = tempfile.mkstemp(
        prefix=".plans-", suffix=".onnx", dir=source.parent if beside else None
    )
    os.close(handle)
    onnx.save(model, copy)
    return Path(copy)
