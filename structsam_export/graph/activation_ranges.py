"""Calibration: how large the activations before every linear layer get, on photos.

ONNX Runtime's own calibrators run the graph unoptimised and with denormal numbers, three times as
slow, and keep no maximum per channel of the last axis; so the maxima are outputs of the graph here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from structsam.errors import UserError
from structsam_export.graph.linear_layers import attention_products, linear_layers


@dataclass(frozen=True)
class ActivationRanges:
    """The largest absolute values that were seen before every linear layer.

    Args:
        largest: name of the layer -> float32 [channels].
        factors: name of a product of attention -> the largest of both its factors; empty where
            attention is not quantised.
        layers_sha256: of the graph that they belong to; see `layers_digest`.
        photos: how many they were measured on.
    """

    largest: Mapping[str, np.ndarray]
    layers_sha256: str
    photos: int
    factors: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def layers_digest(model: onnx.ModelProto) -> str:
    """Return a digest of the linear layers: names, shapes of what they take, weights as float16.

    The FP32 and the FP16 graph of one merged encoder have the same.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    digest = hashlib.sha256()
    for layer in linear_layers(model.graph):
        weight = numpy_helper.to_array(weights[layer.weight]).astype(np.float16)
        text = f"{layer.name} {shapes.get(layer.activations)} {weight.shape}"
        digest.update(text.encode() + np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def measure_ranges(
    file: Path, feeds: Iterable[Mapping[str, np.ndarray]], attention: bool = False
) -> ActivationRanges:
    """Run an encoder's ONNX in FP32 on photos, in ONNX Runtime on the CPU.

    Args:
        attention: measure the factors of attention's products, too.
        feeds: the encoder's inputs, one photo each; taken one at a time.

    Raises:
        UserError: no photo, or activations that are no numbers.
    """
    import onnxruntime as ort

    digest = layers_digest(onnx.load(file))
    model = onnx.load(file, load_external_data=False)  # a protobuf holds 2 GB at most
    layers = linear_layers(model.graph)
    products = attention_products(model.graph) if attention else []
    width = {layer.activations: layer.channels for layer in layers}
    width |= {factor: 1 for product in products for factor in product.factors}
    outputs = _add_maxima(model.graph, width)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(file.parent))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    del model
    largest: dict[str, np.ndarray] = {}
    photos = 0
    for feed in feeds:
        found = dict(zip(width, session.run(list(outputs.values()), dict(feed)), strict=True))
        largest = {n: np.maximum(v, found[n]) for n, v in largest.items()} or found
        photos += 1
    if not photos:
        raise UserError("calibration was given no photos. Give a folder of 16 to 128 of them")
    by_name = {layer.name: largest[layer.activations] for layer in layers}
    for name, values in by_name.items():
        if not np.isfinite(values).all():
            raise UserError(f"activations before {name} are not finite. Check the weights")
    factors = {p.name: tuple(float(largest[f][0]) for f in p.factors) for p in products}
    return ActivationRanges(by_name, digest, photos, factors)  # type: ignore[arg-type]


def _add_maxima(graph: onnx.GraphProto, width: Mapping[str, int]) -> dict[str, str]:
    """Make the largest absolute values of tensors outputs, and return the outputs' names.

    Args:
        width: name of the tensor -> its channels; 1 for one value of all.
    """
    outputs: dict[str, str] = {}
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "ranges/axis"))
    for tensor, channels in width.items():
        name = f"{tensor}/largest"
        rows = numpy_helper.from_array(np.array([-1, channels], np.int64), f"{name}/rows")
        graph.initializer.append(rows)
        graph.node.extend(
            [
                helper.make_node("Reshape", [tensor, rows.name], [f"{name}/flat"]),
                helper.make_node("Abs", [f"{name}/flat"], [f"{name}/abs"]),
                helper.make_node("ReduceMax", [f"{name}/abs", "ranges/axis"], [name], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [channels]))
        outputs[tensor] = name
    return outputs
