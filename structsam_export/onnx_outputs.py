"""Show inner tensors of a shipped ONNX file without touching it. Needs onnx, not torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx


def add_outputs(source: Path, folder: Path, names: list[str]) -> Path:
    """Write a copy of an ONNX file into `folder` with more inner int64 tensors as outputs.

    Weights in external data are linked, not copied, where the file system allows it.

    Returns:
        The path of the copy.
    """
    model = onnx.load(source, load_external_data=False)
    for name in names:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        )
    target = folder / source.name
    onnx.save(model, target)
    data = source.with_name(f"{source.name}.data")
    if data.is_file():
        try:
            os.link(data, folder / data.name)
        except OSError:
            shutil.copyfile(data, folder / data.name)
    return target
