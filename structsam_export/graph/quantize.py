"""INT8 as a property of the graph: QuantizeLinear and DequantizeLinear around linear layers only.

Every linear layer of the blocks (qkv, proj and the two of the MLP) takes its activations through a
pair of QuantizeLinear and DequantizeLinear, with one scale and zero point 0, and its weight as int8
constants through a DequantizeLinear with a scale per output channel. Residual additions, norms,
softmax, energy, ranks, neck and patch embedding never see either. ONNX Runtime, OpenVINO, TensorRT
and TensorRT for RTX read such a file.

Written here, not by `onnxruntime.quantization.quantize_static`: that calibrates and writes one
graph (an FP16 graph takes the ranges of its FP32 twin here), quantises a tensor for all its
readers and not for the linear layer alone, and leaves a Gemm with a bias unfused on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from structsam.errors import UserError
from structsam_export.graph.activation_ranges import ActivationRanges, layers_digest
from structsam_export.graph.linear_layers import LinearLayer, linear_layers

#: The largest magnitude of symmetric int8: -128 is not used.
LARGEST = 127


def quantize_linear_layers(source: Path, target: Path, ranges: ActivationRanges) -> None:
    """Write the graph in `source` with INT8 linear layers to `target`.

    Args:
        source: an encoder's ONNX, FP32 or FP16, of the merging that `ranges` were measured with.

    Raises:
        UserError: `ranges` are those of another graph.
    """
    model = onnx.load(source)
    if layers_digest(model) != ranges.layers_sha256:
        raise UserError(
            f"the activations were measured in another graph than {source.name}: another model, "
            "other weights, or another merging. Calibrate on the graph that is quantised"
        )
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = {layer.name: layer for layer in linear_layers(graph)}
    writer = _Writer()
    products: dict[str, LinearLayer] = {}
    for node in graph.node:
        layer = layers.get(node.name)
        if layer is not None:
            weight = numpy_helper.to_array(weights[layer.weight])
            writer.add_layer(node, layer, weight, float(ranges.largest[layer.name].max()))
            products[node.output[0]] = layer
        elif node.op_type == "Add" and (of := [products[i] for i in node.input if i in products]):
            writer.add_bias(node, of[0])
        else:
            writer.nodes.append(node)
    read = {name for node in writer.nodes for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in read]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in writer.nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *writer.constants])
    onnx.save(model, target)


class _Writer:
    """Gathers the nodes and constants of the quantised graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._weights: dict[str, str] = {}
        self._zero = self._constant("int8_zero", np.zeros((), np.int8))

    def add_layer(
        self, node: onnx.NodeProto, layer: LinearLayer, weight: np.ndarray, largest: float
    ) -> None:
        """Add a linear layer whose activations were at most `largest`."""
        scale = np.asarray(largest / LARGEST if largest else 1.0, weight.dtype)
        pair = self._constant(f"{layer.name}/scale", scale), self._zero
        integers, floats = f"{layer.name}/int8", f"{layer.name}/dequantized"
        self._node("QuantizeLinear", [layer.activations, *pair], integers, layer)
        self._node("DequantizeLinear", [integers, *pair], floats, layer)
        factors = [floats, self._dequantized(layer, weight)]
        if node.op_type == "MatMul":
            self._node("MatMul", factors, node.output[0], layer)
            return
        product = f"{layer.name}/product"
        self._node("MatMul", factors, product, layer)
        self._node("Sum", [product, node.input[2]], node.output[0], layer)

    def add_bias(self, node: onnx.NodeProto, layer: LinearLayer) -> None:
        """Write the addition of a bias as `Sum`.

        ONNX Runtime makes a product and an `Add` one `Gemm`, which it computes in floats.
        """
        self._node("Sum", list(node.input), node.output[0], layer)

    def _dequantized(self, layer: LinearLayer, weight: np.ndarray) -> str:
        """Return the name of the weight [channels, outputs]; windows in tiers share one."""
        if layer.weight not in self._weights:
            columns = weight.T if layer.transposed else weight
            largest = np.abs(columns).max(0).astype(np.float32)
            scale = np.where(largest > 0, largest / LARGEST, 1.0).astype(weight.dtype)
            rounded = np.rint(columns.astype(np.float32) / scale.astype(np.float32))
            integers = rounded.clip(-LARGEST, LARGEST).astype(np.int8)
            names = [
                self._constant(f"{layer.name}/weight_int8", integers),
                self._constant(f"{layer.name}/weight_scale", scale),
                self._constant(f"{layer.name}/weight_zero", np.zeros(len(scale), np.int8)),
            ]
            output = f"{layer.name}/weight"
            self._node("DequantizeLinear", names, output, layer, "_weight", axis=1)
            self._weights[layer.weight] = output
        return self._weights[layer.weight]

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def _node(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        layer: LinearLayer,
        suffix: str = "",
        **attributes: Any,
    ) -> None:
        """Name it after the layer's module: engines show the names."""
        name = f"{layer.place}/{operator}{suffix}{layer.call}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
