"""Small bundles whose encoders differ in what a Triton repository must cope with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from structsam_export.bundle.engine_entries import engine_file, fingerprint, record_engine
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PROMPT_BOX, Part, TensorSpec
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle
from tests.structsam_export.small_bundle import save_encoder


def prompt_aware_bundle(folder: Path) -> Bundle:
    """Its encoder adds the mean of the prompt's box to the embedding."""

    def add_box(graph: onnx.GraphProto) -> None:
        graph.output[0].name = "image_embeddings"
        graph.node[-1].output[0] = "plain"
        graph.input.append(helper.make_tensor_value_info(PROMPT_BOX, TensorProto.FLOAT, [1, 4]))
        graph.node.append(helper.make_node("ReduceMean", [PROMPT_BOX], ["mean"], keepdims=0))
        graph.node.append(helper.make_node("Add", ["plain", "mean"], ["image_embeddings"]))

    box = TensorSpec(PROMPT_BOX, (1, 4), "float32")
    return _changed(folder, add_box, lambda part: replace(part, inputs=(*part.inputs, box)))


def batched_bundle(folder: Path, batch: int) -> Bundle:
    """Its encoder takes exactly `batch` photos a call."""

    def widen(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch

    def wide(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=(batch, *spec.shape[1:])) for spec in specs)

    return _changed(
        folder,
        widen,
        lambda part: replace(part, inputs=wide(part.inputs), outputs=wide(part.outputs)),
    )


def bundle_with_more_outputs(folder: Path) -> Bundle:
    """Its encoder has early features, which its decoder takes, and a plan."""
    early = TensorSpec("early_features", (1, 16, 16, 8), "float16")
    plan = TensorSpec("slot_of_token.0", (1, 256), "int32")

    def add(graph: onnx.GraphProto) -> None:
        for spec, kind in ((early, TensorProto.FLOAT16), (plan, TensorProto.INT32)):
            dtype = "float16" if spec is early else "int32"
            value = numpy_helper.from_array(np.zeros(spec.shape, dtype), f"{spec.name}.value")
            graph.initializer.append(value)
            graph.node.append(helper.make_node("Identity", [value.name], [spec.name]))
            graph.output.append(helper.make_tensor_value_info(spec.name, kind, spec.shape))

    bundle = _changed(
        folder,
        add,
        lambda part: replace(part, outputs=(*part.outputs, early), plan_outputs=(plan,)),
    )
    decoder = bundle.part("decoder")
    changed = replace(decoder, inputs=(*decoder.inputs, early))
    bundle.manifest["decoder"] = changed.to_dict()
    bundle.save_manifest()
    return bundle


def put_plans(
    bundle: Bundle, targets: tuple[str, ...] = ("sm86", "sm89"), version: str = "10.13.0"
) -> None:
    """Record plans of both networks; no TensorRT could open them."""
    (bundle.path / "engines").mkdir(exist_ok=True)
    for part in ("encoder", "decoder"):
        for target in targets:
            file = bundle.path / engine_file("tensorrt", part, target)
            file.write_bytes(f"{part} for {target}".encode())
            wanted = fingerprint(bundle, "tensorrt", part, target, version, "A GPU")
            record_engine(bundle, "tensorrt", part, target, wanted, 1.0, {})


def _changed(
    folder: Path, change: Callable[[onnx.GraphProto], None], contract: Callable[[Part], Part]
) -> Bundle:
    bundle = make_sam_like_bundle(folder)
    file = bundle.path / "encoder.onnx"
    save_encoder(file)
    model = onnx.load(file)
    change(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    bundle.manifest["encoder"] = contract(bundle.part("encoder")).to_dict()
    bundle.record_file("encoder.onnx")
    bundle.save_manifest()
    return bundle
