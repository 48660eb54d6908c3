"""A bundle of two tiny graphs that have what a real one has: static shapes, and dynamic P and K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import SCHEMA_VERSION, Part, TensorSpec

onnx = pytest.importorskip("onnx")
PROFILE = {"P": (1, 1, 64), "K": (1, 2, 16)}


def save_encoder(file: Path, activation: str = "Relu", external: bool = False) -> None:
    """A strongly typed graph: FP32 outside, one FP16 convolution inside."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float16)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["half", "weight"], ["patches"], strides=[4, 4]),
            helper.make_node(activation, ["patches"], ["active"], name="my_activation"),
            helper.make_node("Cast", ["active"], ["image_embeddings"], to=TensorProto.FLOAT),
        ],
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("image_embeddings", TensorProto.FLOAT, [1, 8, 16, 16])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(
        model,
        file,
        save_as_external_data=external,
        location=f"{file.name}.data",
        size_threshold=0,
    )


def save_decoder(file: Path) -> None:
    """Dynamic P and K; row p of the output is sum(point_coords[p]) + sum(point_labels[p])."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["point_coords"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "ones"], ["wide"]),
            helper.make_node("ReduceSum", ["wide", "axis"], ["summed"], keepdims=0),
            helper.make_node("Cast", ["summed"], ["coords"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["point_labels", "axis"], ["labels"], keepdims=1),
            helper.make_node("Add", ["coords", "labels"], ["iou_predictions"]),
        ],
        "decoder",
        [
            helper.make_tensor_value_info("point_coords", TensorProto.FLOAT, ["P", "K", 2]),
            helper.make_tensor_value_info("point_labels", TensorProto.FLOAT, ["P", "K"]),
        ],
        [helper.make_tensor_value_info("iou_predictions", TensorProto.FLOAT, ["P", 4])],
        [
            numpy_helper.from_array(np.ones((2, 4), np.float16), "ones"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, file)


def make_bundle(folder: Path, external: bool = False, **encoder: Any) -> Bundle:
    """A bundle with both small graphs, as an export leaves it."""
    folder.mkdir(exist_ok=True)
    save_encoder(folder / "encoder.onnx", external=external, **encoder)
    save_decoder(folder / "decoder.onnx")
    parts = {
        "encoder": Part(
            "encoder.onnx",
            (TensorSpec("image", (1, 3, 64, 64), "float32"),),
            (TensorSpec("image_embeddings", (1, 8, 16, 16), "float32"),),
        ),
        "decoder": Part(
            "decoder.onnx",
            (
                TensorSpec("point_coords", ("P", "K", 2), "float32"),
                TensorSpec("point_labels", ("P", "K"), "float32"),
            ),
            (TensorSpec("iou_predictions", ("P", 4), "float32"),),
            dict(PROFILE),
        ),
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": "small",
        "model": {"weights": "random"},
        "precision": {"name": "fp16"},
        **{name: part.to_dict() for name, part in parts.items()},
    }
    bundle = Bundle(folder, manifest)
    for file in sorted(folder.glob("*.onnx*")):
        bundle.record_file(file.name)
    bundle.save_manifest()
    return bundle
