"""The linear layers of an encoder's blocks in its ONNX graph, found by the names of their nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from structsam.errors import UserError

if TYPE_CHECKING:
    import onnx

#: `qkv`, `proj` and the two of the MLP; tables of positions are products as well, in other modules.
_NAME = re.compile(
    r"(?P<place>blocks\.\d+\.(attn\.(qkv|proj)|mlp\.lin[12]))/(MatMul|Gemm)(?P<call>(_\d+)?)"
)

#: The products of attention: queries with keys, and the softmax with values.
_ATTENTION = re.compile(r"(?P<place>blocks\.\d+\.core)/MatMul(?P<call>(_\d+)?)")


@dataclass(frozen=True)
class AttentionProduct:
    """The product of a softmax with values in a block's attention.

    Args:
        name: of its node, such as `blocks.3.core/MatMul_2`.
        factors: names of its inputs.
        place, call: as in `LinearLayer`.
    """

    name: str
    factors: tuple[str, str]
    place: str
    call: str


@dataclass(frozen=True)
class LinearLayer:
    """One product of activations with a weight.

    Args:
        name: of its node, such as `blocks.3.attn.qkv/MatMul`.
        activations: name of its first input.
        weight: name of the initializer that is its second input.
        channels: how many the activations have.
        transposed: the weight is [outputs, channels], else [channels, outputs].
        place: name of its module, such as `blocks.3.attn.qkv`.
        call: `_2` and so on where the module is called more than once; else empty.
    """

    name: str
    activations: str
    weight: str
    channels: int
    transposed: bool
    place: str
    call: str


def is_attention_product(name: str) -> bool:
    """Whether a node of this name is a product of attention."""
    return _ATTENTION.fullmatch(name) is not None


def attention_products(graph: onnx.GraphProto) -> list[AttentionProduct]:
    """Return the products of a softmax with values of all blocks.

    Those of queries with keys are none: positions are folded into them, and one scale for both
    moves masks (docs/int8.md).

    Raises:
        UserError: there is none, as where attention is one operator.
    """
    softmax = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    found = []
    for node in graph.node:
        parts = _ATTENTION.fullmatch(node.name)
        if parts and node.input[0] in softmax:
            factors = node.input[0], node.input[1]
            found.append(AttentionProduct(node.name, factors, parts["place"], parts["call"]))
    if not found:
        raise UserError(
            "the graph has no products of attention to quantise: this form of attention is one "
            "operator. Use `attention='folded'`"
        )
    return found


def is_linear_product(name: str) -> bool:
    """Whether a node of this name multiplies by the weight of one of the blocks' linear layers."""
    return _NAME.fullmatch(name) is not None


def linear_layers(graph: onnx.GraphProto) -> list[LinearLayer]:
    """Return the linear layers of all blocks.

    Raises:
        UserError: there is none, or one whose weight is computed.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        parts = _NAME.fullmatch(node.name)
        if parts is None:
            continue
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        weight = weights.get(node.input[1])
        if weight is None:
            raise UserError(f"the weight of {node.name} is no constant. Export the encoder again")
        channels = weight.dims[1 if transposed else 0]
        names = node.name, node.input[0], weight.name
        found.append(LinearLayer(*names, channels, transposed, parts["place"], parts["call"]))
    if not found:
        raise UserError(
            "no node of the graph is named after a linear layer of SAM's blocks, such as "
            "blocks.0.attn.qkv/MatMul. Quantise an encoder that this version exported"
        )
    return found
