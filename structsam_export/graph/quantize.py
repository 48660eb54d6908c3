"""INT8 as a property of the graph: QuantizeLinear and DequantizeLinear around linear layers only.

Every linear layer of the blocks (qkv, proj and the two of the MLP) takes its activations through a
pair of QuantizeLinear and DequantizeLinear, with one scale and zero point 0, and its weight as int8
constants through a DequantizeLinear with a scale per output channel. In FP32 graphs, which are for
CPUs, weights have seven bits (`LARGEST_ON_CPUS`). Residual additions, norms,
softmax, energy, ranks, neck and patch embedding never see either. ONNX Runtime, OpenVINO, TensorRT
and TensorRT for RTX read such a file. For CPUs the product of softmax and values may be INT8 as
well, the softmax as unsigned integers because it has no sign.

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
from structsam_export.graph.linear_layers import (
    AttentionProduct,
    LinearLayer,
    attention_products,
    linear_layers,
)

#: The largest magnitude of symmetric int8: -128 is not used.
LARGEST = 127
#: The same for weights that CPUs multiply with. Those without VNNI (x86 before 2019, AMD before
#: Zen 4) add two products of unsigned and signed 8-bit numbers in 16 bits, and cut off what is
#: more: 2 * 255 * 127 is, 2 * 255 * 63 is not.
LARGEST_ON_CPUS = 63


def quantize_linear_layers(source: Path, target: Path, ranges: ActivationRanges) -> None:
    """Write the graph in `source` with INT8 linear layers to `target`.

    With `ranges.factors` the products of softmax and values become INT8, too.

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
    attention = {p.name: p for p in attention_products(graph)} if ranges.factors else {}
    writer = _Writer()
    products: dict[str, LinearLayer] = {}
    for node in graph.node:
        layer = layers.get(node.name)
        if layer is not None:
            weight = numpy_helper.to_array(weights[layer.weight])
            writer.add_layer(node, layer, weight, float(ranges.largest[layer.name].max()))
            if node.op_type == "MatMul":  # a Gemm has its bias: what is added then is a residual
                products[node.output[0]] = layer
        elif node.name in attention:
            writer.add_attention(node, attention[node.name], ranges.factors[node.name])
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
        floats = self._pair(layer, layer.activations, largest / LARGEST, self._zero, weight.dtype)
        factors = [floats, self._dequantized(layer, weight)]
        if node.op_type == "MatMul":
            self._node("MatMul", factors, node.output[0], layer)
            return
        product = f"{layer.name}/product"
        self._node("MatMul", factors, product, layer)
        self._node("Sum", [product, node.input[2]], node.output[0], layer)

    def add_attention(
        self, node: onnx.NodeProto, product: AttentionProduct, largest: tuple[float, float]
    ) -> None:
        """Add a product of activations whose factors were at most `largest`."""
        factors = []
        for side, factor, most in zip(("_left", "_right"), product.factors, largest, strict=True):
            left = side == "_left"
            zero, steps = (self._unsigned_zero(), 255) if left else (self._zero, LARGEST_ON_CPUS)
            factors.append(self._pair(product, factor, most / steps, zero, np.float32, side))
        self._node("MatMul", factors, node.output[0], product)

    def _pair(
        self,
        place: LinearLayer | AttentionProduct,
        activations: str,
        scale: float,
        zero: str,
        kind: Any,
        suffix: str = "",
    ) -> str:
        """Quantise and dequantise activations, and return the name of the result."""
        values = np.asarray(scale or 1.0, kind)
        pair = self._constant(f"{place.name}/scale{suffix}", values), zero
        integers, floats = f"{place.name}/int8{suffix}", f"{place.name}/dequantized{suffix}"
        self._node("QuantizeLinear", [activations, *pair], integers, place, suffix)
        self._node("DequantizeLinear", [integers, *pair], floats, place, suffix)
        return floats

    def _unsigned_zero(self) -> str:
        if all(tensor.name != "uint8_zero" for tensor in self.constants):
            self._constant("uint8_zero", np.zeros((), np.uint8))
        return "uint8_zero"

    def add_bias(self, node: onnx.NodeProto, layer: LinearLayer) -> None:
        """Write the addition of a bias as `Sum`.

        ONNX Runtime makes a product and an `Add` one `Gemm`, which it computes in floats.
        """
        self._node("Sum", list(node.input), node.output[0], layer)

    def _dequantized(self, layer: LinearLayer, weight: np.ndarray) -> str:
        """Return the name of the weight [channels, outputs]; windows in tiers share one."""
        if layer.weight not in self._weights:
            columns = weight.T if layer.transposed else weight
            steps = LARGEST_ON_CPUS if weight.dtype == np.float32 else LARGEST
            largest = np.abs(columns).max(0).astype(np.float32)
            scale = np.where(largest > 0, largest / steps, 1.0).astype(weight.dtype)
            rounded = np.rint(columns.astype(np.float32) / scale.astype(np.float32))
            integers = rounded.clip(-steps, steps).astype(np.int8)
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
        layer: LinearLayer | AttentionProduct,
        suffix: str = "",
        **attributes: Any,
    ) -> None:
        """Name it after the layer's module: engines show the names."""
        name = f"{layer.place}/{operator}{suffix}{layer.call}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
