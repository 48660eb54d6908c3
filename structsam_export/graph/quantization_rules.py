"""The export rules on QuantizeLinear and DequantizeLinear: what TensorRT and CPUs both take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from structsam_export.graph.linear_layers import is_attention_product, is_linear_product
from structsam_export.graph.onnx_graph import Graph, attribute, where

#: What a rule found: the node, and what is wrong with it.
Finding = tuple[str, str]
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def quantized_nodes(graph: Graph) -> Iterator[Finding]:
    """Symmetric int8 with constant scales, around linear layers and products of attention only.

    A softmax may be uint8.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.nodes:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    given = {value.name for value in graph.model.graph.output}
    for node in graph.nodes:
        if node.op_type not in _PAIR:
            continue
        problems = (
            *_numbers(graph, node, _is_left_of_attention(node, readers)),
            *_neighbours(graph, node, readers, given),
        )
        for problem in problems:
            yield where(node), problem


def _is_left_of_attention(
    node: onnx.NodeProto, readers: dict[str, list[tuple[onnx.NodeProto, int]]]
) -> bool:
    """Whether what a node gives ends as the first factor of a product of attention alone."""
    found = readers.get(node.output[0], [])
    if node.op_type == "QuantizeLinear":
        return bool(found) and all(_is_left_of_attention(reader, readers) for reader, _ in found)
    return bool(found) and all(is_attention_product(r.name) and at == 0 for r, at in found)


def _numbers(graph: Graph, node: onnx.NodeProto, may_be_unsigned: bool) -> Iterator[str]:
    """Scale and zero point of one node."""
    scale = graph.constants.get(node.input[1])
    if scale is None:
        yield "its scale is no constant"
        return
    values = numpy_helper.to_array(scale).astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        yield "its scale is not positive and finite"
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    allowed = (TensorProto.INT8, TensorProto.UINT8) if may_be_unsigned else (TensorProto.INT8,)
    if zero is None or zero.data_type not in allowed:
        yield "its zero point is no int8 constant"
    elif numpy_helper.to_array(zero).any():
        yield "its zero point is not 0: TensorRT takes symmetric INT8 only"
    if weight := graph.constants.get(node.input[0]):
        if values.shape != (weight.dims[-1],) or attribute(node, "axis") not in (1, -1):
            yield "the scales of a weight are not one per output channel"
    elif values.shape != ():
        yield "activations have more than one scale"


def _neighbours(
    graph: Graph,
    node: onnx.NodeProto,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    given: set[str],
) -> Iterator[str]:
    """What reads the node's output."""
    if node.output[0] in given:
        yield "its output is an output of the graph"
    for reader, position in readers.get(node.output[0], ()):
        if node.op_type == "QuantizeLinear":
            if reader.op_type != "DequantizeLinear":
                yield f"{where(reader)} reads int8, and only DequantizeLinear may"
            elif _constants(graph, reader) != _constants(graph, node):
                yield f"{where(reader)} has another scale or zero point"
        elif is_attention_product(reader.name):
            continue
        elif reader.op_type != "MatMul" or not is_linear_product(reader.name):
            yield f"{where(reader)} reads it, and is no linear layer of the blocks"
        elif (node.input[0] in graph.constants) != (position == 1):
            yield f"{where(reader)} takes activations for its weight, or a weight for them"


def _constants(graph: Graph, node: onnx.NodeProto) -> list[list[float] | float | None]:
    """Scale and zero point as numbers."""
    tensors = [graph.constants.get(name) for name in node.input[1:]]
    return [None if each is None else numpy_helper.to_array(each).tolist() for each in tensors]
