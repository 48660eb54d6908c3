"""A bundle with a decoder that has all of SAM's inputs and outputs, small enough to check by hand.

score of a prompt = sum of its coordinates + sum of its labels + mean of the embedding, the same for
all four outputs; its masks are that plus mask_input plus has_mask_input.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from structsam.models import MODELS
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, TensorSpec
from tests.structsam_export.small_bundle import PROFILE, make_bundle

LOW = 16


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, shape, "float32")


DECODER = Part(
    "decoder.onnx",
    (
        spec("image_embeddings", 1, 8, 16, 16),
        spec("point_coords", "P", "K", 2),
        spec("point_labels", "P", "K"),
        spec("mask_input", "P", 1, LOW, LOW),
        spec("has_mask_input", "P"),
    ),
    (spec("low_res_masks", "P", 4, LOW, LOW), spec("iou_predictions", "P", 4)),
    dict(PROFILE),
)


def save_sam_like_decoder(file: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in specs]

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("ReduceMean", ["image_embeddings"], ["mean"], keepdims=0),
            node("ReduceSum", ["point_coords", "last_two"], ["coords"], keepdims=0),
            node("ReduceSum", ["point_labels", "last"], ["labels"], keepdims=0),
            node("Sum", ["coords", "labels", "mean"], ["score"]),
            node("Unsqueeze", ["score", "last"], ["column"]),
            node("Mul", ["column", "ones"], ["iou_predictions"]),
            node("Unsqueeze", ["iou_predictions", "last_two_new"], ["wide"]),
            node("Unsqueeze", ["has_mask_input", "three_new"], ["has"]),
            node("Sum", ["wide", "mask_input", "has"], ["low_res_masks"]),
        ],
        "decoder",
        values(DECODER.inputs),
        values(DECODER.outputs),
        [
            numpy_helper.from_array(np.ones((1, 4), np.float32), "ones"),
            numpy_helper.from_array(np.array([1]), "last"),
            numpy_helper.from_array(np.array([1, 2]), "last_two"),
            numpy_helper.from_array(np.array([2, 3]), "last_two_new"),
            numpy_helper.from_array(np.array([1, 2, 3]), "three_new"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def make_sam_like_bundle(folder: Path) -> Bundle:
    """The small encoder and this decoder, ready for a `Predictor`."""
    bundle = make_bundle(folder)
    save_sam_like_decoder(folder / "decoder.onnx")
    bundle.manifest["decoder"] = DECODER.to_dict()
    preprocessing = replace(MODELS["vit_b"].preprocessing, image_size=64)
    bundle.manifest["preprocessing"] = preprocessing.to_dict()
    bundle.record_file("decoder.onnx")
    bundle.save_manifest()
    return bundle
