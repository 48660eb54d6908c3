"""The export rules: what every ONNX file must keep to, so that TensorRT builds it everywhere.

Each rule is one function that yields violations, and one entry in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from structsam.errors import UserError
from structsam_export.bundle.manifest import PLAN_TENSORS
from structsam_export.graph.onnx_graph import (
    Graph,
    attribute,
    is_number,
    num_bytes,
    where,
)
from structsam_export.graph.quantization_rules import quantized_nodes

MAX_OPSET = 20
#: The first opset with `Attention`, and all that a graph with that node may have.
ATTENTION_OPSET = 23
MAX_TOPK = 3840
SINGLE_FILE_LIMIT = 2_000_000_000
#: Metadata key under which an exported file names the input dimensions that may vary.
DYNAMIC_KEY = "structsam.dynamic"
#: Metadata key under which an exported encoder names the blocks whose plans are outputs.
PLANS_KEY = "structsam.plans"

_FORBIDDEN = {
    "NonZero": "its output shape depends on data",
    "Unique": "its output shape depends on data",
    "Compress": "its output shape depends on data",
    "NonMaxSuppression": "its output shape depends on data",
    "Loop": "TensorRT cannot fuse across control flow",
    "If": "TensorRT cannot fuse across control flow",
    "Scan": "TensorRT cannot fuse across control flow",
    "RandomUniform": "runtimes disagree on random numbers; bake a seeded constant",
    "RandomUniformLike": "runtimes disagree on random numbers; bake a seeded constant",
    "RandomNormal": "runtimes disagree on random numbers; bake a seeded constant",
    "RandomNormalLike": "runtimes disagree on random numbers; bake a seeded constant",
    "Bernoulli": "runtimes disagree on random numbers; bake a seeded constant",
    "Multinomial": "runtimes disagree on random numbers; bake a seeded constant",
}
#: Inputs that carry a shape (or a size along an axis), by operator and input position.
_SHAPE_INPUTS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Resize": (2, 3),
    "Range": (0, 1, 2),
    "Split": (1,),
    "TopK": (1,),
}
_FEATURE_OPS = {
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Softmax", "LayerNormalization",
    "ReduceMean", "Gelu", "Erf", "Attention",
}  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """One broken rule: its name, where, and why it matters."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.message}"


def lint(file: str | Path, dynamic: frozenset[str] | None = None) -> list[Violation]:
    """Check one ONNX file against all rules.

    Args:
        dynamic: names of input dimensions that may vary; None takes them from the file's own
            metadata (structsam writes P and K into decoders), else there are none.

    Returns:
        The violations; empty when the file keeps to the rules.

    Raises:
        UserError: the file is missing or no ONNX.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no ONNX file at {path}. Check the path")
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf and checker raise many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a valid ONNX file ({first}). Export it again") from None
    if dynamic is None:
        own = {prop.key: prop.value for prop in model.metadata_props}.get(DYNAMIC_KEY, "")
        dynamic = frozenset(filter(None, own.split(",")))
    graph = Graph(path, onnx.shape_inference.infer_shapes(model, data_prop=True), dynamic)
    return [violation for rule in RULES for violation in rule(graph)]


def runtime_needs(file: str | Path) -> str | None:
    """Say which runtimes know an ONNX file that needs more than the oldest ones that we serve."""
    graph = onnx.load(file, load_external_data=False).graph
    if not any(node.op_type == "Attention" for node in graph.node):
        return None
    return (
        f"Attention of opset {ATTENTION_OPSET}: needs ONNX Runtime 1.23, TensorRT 10.14 or "
        "TensorRT for RTX, whose engines take it in FP16 only; TensorRT 10.3 of JetPack 6 does "
        "not know it"
    )


def require_clean(file: str | Path) -> None:
    """Raise a `UserError` that names every violation, if there is one."""
    file = Path(file)
    violations = lint(file)
    if violations:
        raise UserError(
            f"{file.name} breaks {len(violations)} export rule(s): "
            + "; ".join(map(str, violations[:8]))
        )


def static_shapes(graph: Graph) -> Iterator[Violation]:
    """Every dimension is a number, or one of the names that may vary (inputs and outputs)."""
    proto = graph.model.graph
    initializers = {tensor.name for tensor in proto.initializer}
    for value in (*proto.input, *proto.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not is_number(dim) and dim.dim_param not in graph.dynamic:
                shown = dim.dim_param or "unknown"
                yield Violation("static-shapes", value.name, f"axis {axis} is {shown!r}, no number")
    if graph.dynamic:
        return
    known = {v.name: v.type.tensor_type for v in (*proto.input, *proto.output, *proto.value_info)}
    for node in graph.nodes:
        for name in filter(None, node.output):
            if name in initializers or name in graph.constants:
                continue
            tensor = known.get(name)
            static = (
                tensor is not None
                and tensor.HasField("shape")
                and all(map(is_number, tensor.shape.dim))
            )
            if not static:
                yield Violation(
                    "static-shapes", where(node), f"the shape of {name} is known only at run time"
                )


def forbidden_ops(graph: Graph) -> Iterator[Violation]:
    """No data-dependent shapes, control flow, randomness or operators outside ONNX itself."""
    for node in graph.nodes:
        if node.op_type in _FORBIDDEN:
            yield Violation("forbidden-op", where(node), _FORBIDDEN[node.op_type])
        if node.domain not in ("", "ai.onnx"):
            yield Violation(
                "forbidden-op", where(node), f"domain {node.domain!r} runs on one runtime only"
            )


def scatter_reduction(graph: Graph) -> Iterator[Violation]:
    """No scatter with reduction: TensorRT ignores it or needs a plugin."""
    for node in graph.nodes:
        if node.op_type in ("ScatterElements", "ScatterND", "Scatter"):
            mode = attribute(node, "reduction")
            if mode not in (None, b"none"):
                yield Violation("scatter-reduction", where(node), f"reduction={mode!r}")


def topk_limit(graph: Graph) -> Iterator[Violation]:
    """TopK has a constant K of at most 3840."""
    for node in graph.nodes:
        if node.op_type != "TopK":
            continue
        k = graph.constants.get(node.input[1])
        if k is None:
            yield Violation("topk", where(node), "K is not a constant")
        elif int(onnx.numpy_helper.to_array(k).reshape(-1)[0]) > MAX_TOPK:
            yield Violation("topk", where(node), f"K is above {MAX_TOPK}, TensorRT's limit")


def onehot_shapes(graph: Graph) -> Iterator[Violation]:
    """No OneHot on the way to a shape: TensorRT refuses it."""
    tainted: dict[str, str] = {}
    for node in graph.nodes:  # ONNX keeps nodes in topological order
        if node.op_type == "OneHot":
            tainted.update(dict.fromkeys(node.output, where(node)))
        for position, name in enumerate(node.input):
            if name in tainted and position in _SHAPE_INPUTS.get(node.op_type, ()):
                yield Violation(
                    "onehot-shape", tainted[name], f"it feeds the shape of {where(node)}"
                )
            elif name in tainted and node.op_type not in ("Shape", "Size"):
                tainted.update(dict.fromkeys(node.output, tainted[name]))


def no_fp64(graph: Graph) -> Iterator[Violation]:
    """No FP64 anywhere: TensorRT has none."""
    for name, kind in graph.types.items():
        if kind == TensorProto.DOUBLE:
            yield Violation("fp64", name, "the tensor is float64; export it as float32")


def int64_indices(graph: Graph) -> Iterator[Violation]:
    """int64 only for indices and shapes: not at inputs or outputs, not in feature arithmetic."""
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        if graph.types[value.name] == TensorProto.INT64:
            yield Violation("int64", value.name, "an input or output is int64")
    for node in graph.nodes:
        if node.op_type not in _FEATURE_OPS:
            continue
        features = node.input[:1] if node.op_type == "ReduceMean" else node.input
        for name in features:
            if graph.types.get(name) == TensorProto.INT64:
                yield Violation("int64", where(node), f"{name} is int64 in feature arithmetic")


def plan_outputs(graph: Graph) -> Iterator[Violation]:
    """Every block that plans gives both its plan tensors: int32, for the same maps."""
    outputs = {value.name: value.type.tensor_type for value in graph.model.graph.output}
    shown = {name for name in outputs if name.rpartition(".")[0] in PLAN_TENSORS}
    planning = {name.rpartition(".")[2] for name in shown}
    listed = {prop.key: prop.value for prop in graph.model.metadata_props}.get(PLANS_KEY)
    if listed is not None:
        for block in sorted(planning - set(listed.split(","))):
            yield Violation("plan-outputs", f"block {block}", f"{PLANS_KEY} does not name it")
        planning |= set(filter(None, listed.split(",")))
    for block in sorted(planning):
        names = [f"{name}.{block}" for name in PLAN_TENSORS]
        for name in names:
            if name not in outputs:
                yield Violation("plan-outputs", name, f"block {block} plans, and this is no output")
            elif outputs[name].elem_type != TensorProto.INT32:
                kind = TensorProto.DataType.Name(outputs[name].elem_type).lower()
                yield Violation("plan-outputs", name, f"it is {kind}, and has to be int32")
        if shown.issuperset(names):
            slots, anchors = (outputs[name].shape.dim for name in names)
            if len(slots) != 2 or len(anchors) != 2 or slots[0] != anchors[0]:
                message = "slots and anchors are [maps, tokens] and [maps, slots] of the same maps"
                yield Violation("plan-outputs", f"block {block}", message)


def quantization(graph: Graph) -> Iterator[Violation]:
    """INT8 is symmetric, with constant scales, and around the blocks' linear layers alone."""
    for place, problem in quantized_nodes(graph):
        yield Violation("quantization", place, problem)


def opset_limit(graph: Graph) -> Iterator[Violation]:
    """ONNX opset at most 20, which TensorRT 10.3 reads; 23 where `Attention` needs it."""
    has_attention = any(node.op_type == "Attention" for node in graph.nodes)
    limit = ATTENTION_OPSET if has_attention else MAX_OPSET
    for opset in graph.model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > limit:
            yield Violation("opset", f"opset {opset.version}", f"above {limit}")


def external_data(graph: Graph) -> Iterator[Violation]:
    """External data only above 2 GB, in one file beside the ONNX, by a relative name."""
    tensors = graph.constants.values()
    total = sum(map(num_bytes, tensors))
    locations = set()
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            locations |= {e.value for e in tensor.external_data if e.key == "location"}
    if not locations:
        return
    expected = f"{graph.file.name}.data"
    if locations != {expected}:
        found = ", ".join(sorted(locations))
        yield Violation("external-data", found, f"should be the one file {expected}")
    if total <= SINGLE_FILE_LIMIT:
        yield Violation("external-data", expected, f"{total} bytes fit into the ONNX file itself")


RULES: tuple[Callable[[Graph], Iterator[Violation]], ...] = (
    static_shapes,
    forbidden_ops,
    scatter_reduction,
    topk_limit,
    onehot_shapes,
    no_fp64,
    int64_indices,
    plan_outputs,
    quantization,
    opset_limit,
    external_data,
)
