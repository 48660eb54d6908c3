"""An ONNX file with the look-ups that rules on it share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx


@dataclass
class Graph:
    """An ONNX file with the look-ups that the rules share; external data stays on disk."""

    file: Path
    model: onnx.ModelProto
    dynamic: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.nodes = list(all_nodes(graph))
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.constants[tensor.name] = tensor
        for node in self.nodes:
            if node.op_type == "Constant":
                tensor = constant(node)
                self.constants[node.output[0]] = tensor
                self.types[node.output[0]] = tensor.data_type


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, those of graphs inside them too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_nodes(inner)


def attribute(node: onnx.NodeProto, name: str) -> object:
    """Return the value of a node's attribute, or None."""
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return None


def constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """Return the value of a `Constant`, whichever of its attributes holds it."""
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return value
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            kind = np.int64 if "int" in attribute.name else np.float32
            return onnx.numpy_helper.from_array(np.asarray(value, kind))
    return onnx.TensorProto()


def is_number(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a dimension is fixed."""
    return dim.HasField("dim_value") and dim.dim_value >= 0


def num_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a tensor's values take, wherever they are kept."""
    if not tensor.data_type:
        return 0
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for dim in tensor.dims:
        size *= dim
    return size


def where(node: onnx.NodeProto) -> str:
    """Say which node it is."""
    return f"{node.op_type} {node.name or node.output[0]}"
