"""Every export rule against a graph that breaks it, and against graphs that come close."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from structsam.errors import UserError
from structsam_export.graph.lint import DYNAMIC_KEY, PLANS_KEY, RULES, lint, require_clean


def info(name, shape, kind=T.FLOAT):
    return h.make_tensor_value_info(name, kind, shape)


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype=dtype), name)


def int64s(name, values):
    return constant(name, values, np.int64)


class Planted:
    """Writes graphs into a folder: `planted(nodes, x=[..], ...)`, output y unless told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        nodes,
        *,
        inputs=None,
        outputs=None,
        constants=(),
        opset=20,
        domains=(),
        metadata=None,
        name="model.onnx",
    ) -> Path:
        graph = h.make_graph(
            nodes,
            "planted",
            [info("x", [4, 6])] if inputs is None else inputs,
            [info("y", [4, 6])] if outputs is None else outputs,
            list(constants),
        )
        opsets = [h.make_opsetid("", opset), *(h.make_opsetid(domain, 1) for domain in domains)]
        model = h.make_model(graph, opset_imports=opsets, ir_version=10)
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        file = self.folder / name
        onnx.save(model, file)
        return file


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


def rules_of(file, **kwargs):
    return [violation.rule for violation in lint(file, **kwargs)]


RELU = h.make_node("Relu", ["x"], ["y"], name="relu")


def test_a_clean_graph_has_no_violations(planted) -> None:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["m"]),
        h.make_node("Softmax", ["m"], ["s"], axis=-1),
        h.make_node("Gather", ["s", "rows"], ["g"], axis=0),
        h.make_node("Reshape", ["g", "shape"], ["y"]),
    ]
    constants = [
        constant("w", np.ones((6, 8))),
        int64s("rows", [3, 0]),
        int64s("shape", [4, 4]),
    ]
    file = planted(nodes, constants=constants, outputs=[info("y", [4, 4])])
    assert lint(file) == []
    assert lint(str(file)) == []
    require_clean(file)


def test_every_rule_has_its_planted_violation_here() -> None:
    """Those of `quantization` are in test_quantize.py."""
    assert {rule.__name__ for rule in RULES} == {
        "static_shapes", "forbidden_ops", "scatter_reduction", "topk_limit", "onehot_shapes",
        "no_fp64", "int64_indices", "plan_outputs", "quantization", "opset_limit", "external_data",
    }  # fmt: skip


# static shapes


@pytest.mark.parametrize("dim", ["batch", None])
def test_an_input_with_a_named_or_unknown_dimension_is_found(planted, dim) -> None:
    file = planted([RELU], inputs=[info("x", [dim, 6])], outputs=[info("y", [dim, 6])])
    violations = lint(file)
    assert {v.rule for v in violations} == {"static-shapes"}
    assert {"x", "y"} <= {v.where for v in violations}
    assert any((dim or "unknown") in v.message and "axis 0" in v.message for v in violations)


def test_an_inner_shape_that_is_known_only_at_run_time_is_found(planted) -> None:
    nodes = [
        h.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        h.make_node("Reshape", ["m", "one"], ["m1"]),
        h.make_node("Cast", ["m1"], ["n"], to=T.INT64),
        h.make_node("Expand", ["c", "n"], ["e"], name="grow"),
        h.make_node("ReduceSum", ["e"], ["s"], keepdims=0),
        h.make_node("Add", ["x", "s"], ["y"]),
    ]
    file = planted(nodes, constants=[int64s("one", [1]), constant("c", [1.0])])
    violations = lint(file)
    assert {v.rule for v in violations} == {"static-shapes"}
    assert any("grow" in v.where and "e is known only at run time" in v.message for v in violations)


@pytest.mark.parametrize("how", ["metadata", "argument"])
def test_allowed_dynamic_dimensions_are_no_violation(planted, how) -> None:
    metadata = {DYNAMIC_KEY: "P,K"} if how == "metadata" else None
    file = planted(
        [RELU],
        inputs=[info("x", ["P", "K", 2])],
        outputs=[info("y", ["P", "K", 2])],
        metadata=metadata,
    )
    assert rules_of(file, dynamic=None if how == "metadata" else frozenset({"P", "K"})) == []


def test_only_the_allowed_dimensions_are_allowed(planted) -> None:
    kwargs = {"inputs": [info("x", ["P", "Q"])], "outputs": [info("y", ["P", "Q"])]}
    file = planted([RELU], metadata={DYNAMIC_KEY: "P"}, **kwargs)
    assert [v.where for v in lint(file)] == ["x", "y"]
    assert all("'Q'" in v.message for v in lint(file))
    unnamed = planted([RELU], inputs=[info("x", [None, 6])], outputs=[info("y", [4, 6])])
    assert "static-shapes" in rules_of(unnamed, dynamic=frozenset({"P"}))


def test_an_empty_argument_overrules_the_files_own_metadata(planted) -> None:
    file = planted(
        [RELU],
        inputs=[info("x", ["P", 6])],
        outputs=[info("y", ["P", 6])],
        metadata={DYNAMIC_KEY: "P"},
    )
    assert rules_of(file) == []
    assert "static-shapes" in rules_of(file, dynamic=frozenset())


def test_other_rules_hold_in_dynamic_graphs_too(planted) -> None:
    file = planted(
        [h.make_node("NonZero", ["x"], ["y"])],
        inputs=[info("x", ["P", 6])],
        outputs=[info("y", [2, "P"], T.INT32)],
        metadata={DYNAMIC_KEY: "P"},
    )
    assert "forbidden-op" in rules_of(file)


def test_a_negative_dimension_is_found(planted) -> None:
    file = planted([RELU], inputs=[info("x", [-1, 6])], outputs=[info("y", [-1, 6])])
    assert "static-shapes" in rules_of(file)


# forbidden operators


def branch(name):
    node = h.make_node("Identity", ["x"], [f"{name}_out"])
    return h.make_graph([node], name, [], [info(f"{name}_out", [4, 6])])


def loop_body(extra=()):
    nodes = [
        h.make_node("Identity", ["cond"], ["cond_out"]),
        *(extra or [h.make_node("Relu", ["state"], ["state_out"])]),
    ]
    inputs = [info("i", [], T.INT64), info("cond", [], T.BOOL), info("state", [4, 6])]
    outputs = [info("cond_out", [], T.BOOL), info("state_out", [4, 6])]
    return h.make_graph(nodes, "body", inputs, outputs)


def scan_body():
    nodes = [
        h.make_node("Add", ["sum_in", "row"], ["sum_out"]),
        h.make_node("Identity", ["sum_out"], ["row_out"]),
    ]
    return h.make_graph(
        nodes,
        "body",
        [info("sum_in", [6]), info("row", [6])],
        [info("sum_out", [6]), info("row_out", [6])],
    )


TRUE = constant("true", True, np.bool_)
FORBIDDEN = {
    "NonZero": ([h.make_node("NonZero", ["x"], ["y"], name="bad")], {}),
    "Unique": ([h.make_node("Unique", ["x"], ["y"], name="bad")], {}),
    "Compress": (
        [h.make_node("Compress", ["x", "mask"], ["y"], axis=0, name="bad")],
        {"constants": [constant("mask", [1, 0, 1, 0], np.bool_)]},
    ),
    "NonMaxSuppression": (
        [h.make_node("NonMaxSuppression", ["x", "s"], ["y"], name="bad")],
        {"inputs": [info("x", [1, 4, 4]), info("s", [1, 1, 4])]},
    ),
    "Loop": (
        [h.make_node("Loop", ["three", "true", "x"], ["y"], body=loop_body(), name="bad")],
        {"constants": [int64s("three", 3), TRUE]},
    ),
    "If": (
        [
            h.make_node(
                "If", ["true"], ["y"], then_branch=branch("a"), else_branch=branch("b"), name="bad"
            )
        ],
        {"constants": [TRUE]},
    ),
    "Scan": (
        [
            h.make_node(
                "Scan", ["zero", "x"], ["last", "y"], body=scan_body(), num_scan_inputs=1,
                name="bad",
            )
        ],
        {"constants": [constant("zero", np.zeros(6))]},
    ),
    "RandomUniform": (
        [
            h.make_node("RandomUniform", [], ["r"], shape=[4, 6], name="bad"),
            h.make_node("Add", ["x", "r"], ["y"]),
        ],
        {},
    ),
    "RandomNormalLike": ([h.make_node("RandomNormalLike", ["x"], ["y"], name="bad")], {}),
    "Bernoulli": ([h.make_node("Bernoulli", ["x"], ["y"], name="bad")], {}),
    "Multinomial": ([h.make_node("Multinomial", ["x"], ["y"], name="bad")], {}),
}  # fmt: skip


@pytest.mark.parametrize("op", FORBIDDEN)
def test_a_forbidden_operator_is_found(planted, op) -> None:
    nodes, kwargs = FORBIDDEN[op]
    output = {
        "NonZero": info("y", [2, None], T.INT64),
        "Unique": info("y", [None]),
        "Compress": info("y", [None, 6]),
        "NonMaxSuppression": info("y", [None, 3], T.INT64),
        "Multinomial": info("y", [4, 1], T.INT32),
    }.get(op, info("y", [4, 6]))
    file = planted(nodes, outputs=[output], **kwargs)
    violations = [v for v in lint(file) if v.rule == "forbidden-op"]
    assert [v.where for v in violations] == [f"{op} bad"]
    assert violations[0].message


def test_a_forbidden_operator_inside_a_branch_is_found_as_well(planted) -> None:
    inner = [
        h.make_node("RandomUniformLike", ["state"], ["noise"], name="hidden"),
        h.make_node("Add", ["state", "noise"], ["state_out"]),
    ]
    file = planted(
        [h.make_node("Loop", ["three", "true", "x"], ["y"], body=loop_body(inner), name="loop")],
        constants=[int64s("three", 3), TRUE],
    )
    found = {v.where for v in lint(file) if v.rule == "forbidden-op"}
    assert found == {"Loop loop", "RandomUniformLike hidden"}


@pytest.mark.parametrize("domain", ["com.microsoft", "my.plugins", "ai.onnx.ml"])
def test_an_operator_of_another_domain_is_found(planted, domain) -> None:
    op = "Scaler" if domain == "ai.onnx.ml" else "FusedThing"
    node = h.make_node(op, ["x"], ["y"], domain=domain, name="mine")
    violations = [v for v in lint(planted([node], domains=[domain])) if v.rule == "forbidden-op"]
    assert [v.where for v in violations] == [f"{op} mine"]
    assert domain in violations[0].message


# scatter


def scatter(planted, op, reduction):
    if op == "ScatterElements":
        index = int64s("index", np.zeros((1, 6)))
        updates = constant("updates", np.ones((1, 6)))
    else:
        index, updates = int64s("index", [[0], [1]]), constant("updates", np.ones((2, 6)))
    attributes = {} if reduction is None else {"reduction": reduction}
    node = h.make_node(op, ["x", "index", "updates"], ["y"], name="s", **attributes)
    return planted([node], constants=[index, updates])


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_a_scatter_with_reduction_is_found(planted, op, reduction) -> None:
    (violation,) = lint(scatter(planted, op, reduction))
    assert (violation.rule, violation.where) == ("scatter-reduction", f"{op} s")
    assert reduction in violation.message


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("reduction", ["none", None])
def test_a_scatter_without_reduction_is_fine(planted, op, reduction) -> None:
    assert lint(scatter(planted, op, reduction)) == []


# TopK


def top_k(planted, k, *, before=(), constants=(), **kwargs):
    nodes = [*before, h.make_node("TopK", ["x", "k"], ["y", "order"], name="top")]
    inputs = kwargs.pop("inputs", [info("x", [1, 4096])])
    return planted(nodes, inputs=inputs, outputs=[info("y", [1, k])], constants=constants, **kwargs)


@pytest.mark.parametrize(("k", "rules"), [(1, []), (3840, []), (3841, ["topk"]), (4096, ["topk"])])
def test_a_constant_k_may_reach_the_limit(planted, k, rules) -> None:
    assert rules_of(top_k(planted, k, constants=[int64s("k", [k])])) == rules
    node = h.make_node("Constant", [], ["k"], value=int64s("", [k]))
    file = top_k(planted, k, before=[node])
    assert rules_of(file) == rules
    if rules:
        assert "3840" in lint(file)[0].message
        assert lint(file)[0].where == "TopK top"


def test_a_k_that_is_computed_is_found(planted) -> None:
    nodes = [h.make_node("Cast", ["f"], ["k"], to=T.INT64)]
    file = top_k(planted, 3, before=nodes, inputs=[info("x", [1, 4096]), info("f", [1])])
    assert "topk" in rules_of(file)
    assert any("not a constant" in v.message for v in lint(file))


@pytest.mark.parametrize(("k", "rules"), [(5, []), (4000, ["topk"])])
def test_a_k_written_as_a_list_of_integers_is_a_constant(planted, k, rules) -> None:
    node = h.make_node("Constant", [], ["k"], value_ints=[k])
    file = top_k(planted, k, before=[node])
    assert rules_of(file) == rules
    assert not any("not a constant" in v.message for v in lint(file))


# OneHot


ONE_HOT = [int64s("depth", 3), int64s("values", [0, 1])]


def one_hot(planted, between, consumer, *, constants=(), outputs):
    """OneHot(i) -> h -> `between` -> `consumer`."""
    nodes = [h.make_node("OneHot", ["i", "depth", "values"], ["h"], name="hot"), *between, consumer]
    return planted(
        nodes,
        inputs=[info("x", [3, 2]), info("i", [], T.INT32)],
        outputs=outputs,
        constants=[*ONE_HOT, *constants],
    )


@pytest.mark.parametrize("op", ["Reshape", "Expand", "Tile", "ConstantOfShape"])
def test_a_one_hot_that_is_a_shape_is_found(planted, op) -> None:
    rank = 2 if op == "Tile" else 3
    trim = [h.make_node("Slice", ["h", "from", "to"], ["s"])] if rank == 2 else []
    shape = "s" if trim else "h"
    node = h.make_node(op, [shape] if op == "ConstantOfShape" else ["x", shape], ["y"], name="use")
    file = one_hot(
        planted,
        trim,
        node,
        constants=[int64s("from", [0]), int64s("to", [2])],
        outputs=[info("y", [None] * rank)],
    )
    found = [v for v in lint(file) if v.rule == "onehot-shape"]
    assert [v.where for v in found] == ["OneHot hot"]
    assert f"{op} use" in found[0].message


@pytest.mark.parametrize("way", ["Cast", "Concat", "Cast-Concat", "Add"])
def test_a_one_hot_on_the_way_to_a_shape_is_found(planted, way) -> None:
    steps = {
        "Cast": [
            h.make_node("Cast", ["h"], ["c"], to=T.INT32),
            h.make_node("Cast", ["c"], ["s"], to=T.INT64),
        ],
        "Concat": [h.make_node("Concat", ["more", "h"], ["s"], axis=0)],
        "Cast-Concat": [
            h.make_node("Cast", ["h"], ["c"], to=T.INT64),
            h.make_node("Concat", ["c", "more"], ["s"], axis=0),
        ],
        "Add": [h.make_node("Add", ["more3", "h"], ["s"])],
    }[way]
    file = one_hot(
        planted,
        steps,
        h.make_node("Reshape", ["x", "s"], ["y"], name="use"),
        constants=[int64s("more", [1]), int64s("more3", [1, 2, 0])],
        outputs=[info("y", [None] * (4 if "Concat" in way else 3))],
    )
    assert "onehot-shape" in rules_of(file)


def test_a_one_hot_in_the_arithmetic_is_harmless(planted) -> None:
    nodes = [
        h.make_node("OneHot", ["i", "depth", "ends"], ["h"], name="hot"),
        h.make_node("MatMul", ["h", "x"], ["m"]),
        h.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    file = planted(
        nodes,
        inputs=[info("x", [3, 2]), info("i", [5], T.INT32)],
        outputs=[info("y", [10])],
        constants=[int64s("depth", 3), constant("ends", [0, 1]), int64s("shape", [10])],
    )
    assert lint(file) == []


def test_the_shape_of_a_one_hot_is_harmless(planted) -> None:
    nodes = [
        h.make_node("OneHot", ["i", "depth", "ends"], ["h"], name="hot"),
        h.make_node("Shape", ["h"], ["s"]),
        h.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    file = planted(
        nodes,
        inputs=[info("x", [3, 2]), info("i", [2], T.INT32)],
        outputs=[info("y", [2, 3])],
        constants=[int64s("depth", 3), constant("ends", [0, 1])],
    )
    assert lint(file) == []


# FP64


def test_a_float64_initializer_is_found(planted) -> None:
    nodes = [h.make_node("Cast", ["w"], ["f"], to=T.FLOAT), h.make_node("Add", ["x", "f"], ["y"])]
    file = planted(nodes, constants=[constant("w", np.ones(6), np.float64)])
    assert [(v.rule, v.where) for v in lint(file)] == [("fp64", "w")]


def test_a_float64_constant_is_found(planted) -> None:
    nodes = [
        h.make_node("Constant", [], ["c"], value=constant("", np.ones(6), np.float64)),
        h.make_node("Cast", ["c"], ["f"], to=T.FLOAT),
        h.make_node("Add", ["x", "f"], ["y"]),
    ]
    assert [(v.rule, v.where) for v in lint(planted(nodes))] == [("fp64", "c")]


def test_float64_between_nodes_and_at_the_ends_is_found(planted) -> None:
    nodes = [
        h.make_node("Cast", ["x"], ["d"], to=T.DOUBLE),
        h.make_node("Cast", ["d"], ["y"], to=T.FLOAT),
    ]
    assert [(v.rule, v.where) for v in lint(planted(nodes))] == [("fp64", "d")]
    ends = planted(
        [RELU], inputs=[info("x", [4], T.DOUBLE)], outputs=[info("y", [4], T.DOUBLE)], name="e.onnx"
    )
    assert [(v.rule, v.where) for v in lint(ends)] == [("fp64", "x"), ("fp64", "y")]


def test_float16_is_fine(planted) -> None:
    half = {"inputs": [info("x", [4], T.FLOAT16)], "outputs": [info("y", [4], T.FLOAT16)]}
    assert lint(planted([RELU], **half)) == []


# int64


def test_an_int64_input_is_found(planted) -> None:
    file = planted(
        [h.make_node("Gather", ["x", "i"], ["y"], axis=0)],
        inputs=[info("x", [4, 6]), info("i", [2], T.INT64)],
        outputs=[info("y", [2, 6])],
    )
    assert [(v.rule, v.where) for v in lint(file)] == [("int64", "i")]


def test_an_int64_output_is_found(planted) -> None:
    file = planted(
        [h.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)], outputs=[info("y", [4], T.INT64)]
    )
    assert [(v.rule, v.where) for v in lint(file)] == [("int64", "y")]


@pytest.mark.parametrize("op", ["MatMul", "Einsum", "ReduceMean"])
def test_int64_in_feature_arithmetic_is_found(planted, op) -> None:
    feature = {
        "MatMul": h.make_node("MatMul", ["i", "i2"], ["m"], name="f"),
        "Einsum": h.make_node("Einsum", ["i", "i2"], ["m"], equation="ab,bc->ac", name="f"),
        "ReduceMean": h.make_node("ReduceMean", ["i", "axes"], ["m"], keepdims=1, name="f"),
    }[op]
    nodes = [
        h.make_node("Cast", ["x"], ["i"], to=T.INT64),
        feature,
        h.make_node("Cast", ["m"], ["y"], to=T.FLOAT),
    ]
    out = [4, 1] if op == "ReduceMean" else [4, 2]
    constants = [int64s("i2", np.ones((6, 2)))] if op != "ReduceMean" else [int64s("axes", [1])]
    violations = lint(planted(nodes, outputs=[info("y", out)], constants=constants))
    assert {(v.rule, v.where) for v in violations} == {("int64", f"{op} f")}


def test_int64_indices_axes_and_shapes_are_fine(planted) -> None:
    nodes = [
        h.make_node("Gather", ["x", "rows"], ["g"], axis=0),
        h.make_node("ReduceMean", ["g", "axes"], ["m"], keepdims=1),
        h.make_node("ArgMax", ["g"], ["best"], axis=1, keepdims=0),
        h.make_node("Add", ["best", "rows"], ["place"]),
        h.make_node("Cast", ["place"], ["p"], to=T.FLOAT),
        h.make_node("Reshape", ["p", "shape"], ["p2"]),
        h.make_node("Add", ["m", "p2"], ["y"]),
    ]
    constants = [int64s("rows", [1, 0]), int64s("axes", [1]), int64s("shape", [2, 1])]
    assert lint(planted(nodes, outputs=[info("y", [2, 1])], constants=constants)) == []


# plan outputs


def plans_file(planted, listed="3", kind=T.INT32, anchor_maps=2, leave_out=()):
    """Slots [2, 6] and anchors [2, 3] of block 3, as an encoder gives them."""
    nodes, outputs = [RELU], [info("y", [4, 6])]
    for name, shape in (("slot_of_token", [2, 6]), ("anchor_of_slot", [anchor_maps, 3])):
        if name not in leave_out:
            nodes.append(h.make_node("Slice", ["x", "zeros", name], [f"{name}.float"]))
            nodes.append(h.make_node("Cast", [f"{name}.float"], [f"{name}.3"], to=kind))
            outputs.append(info(f"{name}.3", shape, kind))
    ends = [int64s("slot_of_token", [2, 6]), int64s("anchor_of_slot", [anchor_maps, 3])]
    metadata = None if listed is None else {PLANS_KEY: listed}
    return planted(
        nodes, outputs=outputs, constants=[int64s("zeros", [0, 0]), *ends], metadata=metadata
    )


@pytest.mark.parametrize("listed", ["3", None])
def test_plans_of_every_block_that_plans_are_fine(planted, listed) -> None:
    assert lint(plans_file(planted, listed)) == []


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ({"listed": "3,5"}, {"slot_of_token.5", "anchor_of_slot.5"}),
        ({"listed": ""}, {"block 3"}),
        ({"leave_out": ["anchor_of_slot"]}, {"anchor_of_slot.3"}),
        ({"leave_out": ["slot_of_token"], "listed": None}, {"slot_of_token.3"}),
        ({"kind": T.FLOAT}, {"slot_of_token.3", "anchor_of_slot.3"}),
        ({"anchor_maps": 1}, {"block 3"}),
    ],
)
def test_plans_that_are_missing_or_of_another_type_are_found(planted, fault, where) -> None:
    violations = lint(plans_file(planted, **fault))
    assert {v.rule for v in violations} == {"plan-outputs"}
    assert {v.where for v in violations} == where


def test_plans_of_int64_are_found_twice(planted) -> None:
    assert set(rules_of(plans_file(planted, kind=T.INT64))) == {"plan-outputs", "int64"}


# opset


@pytest.mark.parametrize(("opset", "rules"), [(17, []), (20, []), (21, ["opset"]), (22, ["opset"])])
def test_the_opset_may_reach_20(planted, opset, rules) -> None:
    file = planted([RELU], opset=opset)
    assert rules_of(file) == rules
    if rules:
        assert str(opset) in str(lint(file)[0])


# external data


def external(planted, locations, elements=4, sizes=None):
    """A graph that adds external vectors; `elements` each, stored at `locations`."""
    nodes, constants, name = [], [], "x"
    for n, location in enumerate(locations):
        tensor = T(name=f"w{n}", data_type=T.FLOAT, data_location=T.EXTERNAL)
        tensor.dims.append(elements)
        tensor.external_data.add(key="location", value=str(location))
        constants.append(tensor)
        path = planted.folder / location
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            os.truncate(stream.fileno(), 4 * elements)  # sparse: no disk is used
        nodes.append(h.make_node("ReduceMax", [f"w{n}"], [f"m{n}"], keepdims=0))
        nodes.append(h.make_node("Add", [name, f"m{n}"], [f"s{n}"]))
        name = f"s{n}"
    nodes[-1].output[0] = "y"
    return planted(nodes, constants=constants)


MANY = 500_000_001  # float32 elements: more than 2 GB


def test_external_data_below_the_limit_is_found(planted) -> None:
    file = external(planted, ["model.onnx.data"])
    (violation,) = lint(file)
    assert violation.rule == "external-data"
    assert "fit into the ONNX file" in violation.message
    exact = external(planted, ["model.onnx.data"], elements=MANY - 1)
    assert rules_of(exact) == ["external-data"]


def test_external_data_above_the_limit_in_its_one_file_is_fine(planted) -> None:
    assert lint(external(planted, ["model.onnx.data"], elements=MANY)) == []


@pytest.mark.parametrize(
    "locations",
    [["weights.bin"], ["model.onnx.data", "more.data"], ["w0", "w1"], ["sub/model.onnx.data"]],
    ids=["wrong-name", "one-too-many", "one-per-tensor", "in-a-folder"],
)
def test_external_data_in_other_or_several_files_is_found(planted, locations) -> None:
    (violation,) = lint(external(planted, locations, elements=MANY))
    assert violation.rule == "external-data"
    assert "model.onnx.data" in violation.message
    assert all(location in violation.where for location in locations)


def test_external_data_at_an_absolute_path_is_refused(planted) -> None:
    """The ONNX checker itself refuses it, so there is no list of violations."""
    file = external(planted, [planted.folder / "model.onnx.data"])
    with pytest.raises(UserError, match="absolute"):
        lint(file)


def test_external_data_that_is_missing_is_refused(planted) -> None:
    file = external(planted, ["model.onnx.data"])
    (planted.folder / "model.onnx.data").unlink()
    with pytest.raises(UserError, match=r"model\.onnx"):
        lint(file)


def test_external_data_of_a_constant_node_is_found(planted) -> None:
    tensor = T(data_type=T.FLOAT, data_location=T.EXTERNAL)
    tensor.dims.append(6)
    tensor.external_data.add(key="location", value="other.bin")
    (planted.folder / "other.bin").write_bytes(bytes(24))
    nodes = [
        h.make_node("Constant", [], ["c"], value=tensor),
        h.make_node("Add", ["x", "c"], ["y"]),
    ]
    assert "external-data" in rules_of(planted(nodes))


# what is no ONNX, and several violations


@pytest.mark.parametrize("content", [b"", b"this is no ONNX file", b"\x89PNG" + bytes(40)])
def test_a_file_that_is_no_onnx_is_refused(tmp_path, content) -> None:
    file = tmp_path / "photo.onnx"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"photo\.onnx is not a valid ONNX file"):
        lint(file)


def test_a_graph_that_the_checker_refuses_is_refused(planted) -> None:
    file = planted([h.make_node("Relu", ["nowhere"], ["y"])])
    with pytest.raises(UserError, match="not a valid ONNX file"):
        lint(file)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_missing_file_is_refused(tmp_path, kind) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none.onnx"
    for check in (lint, require_clean):
        with pytest.raises(UserError, match="no ONNX file at"):
            check(path)


def test_require_clean_names_every_violation(planted) -> None:
    nodes = [
        h.make_node("Constant", [], ["c"], value=constant("", np.ones(6), np.float64)),
        h.make_node("Cast", ["c"], ["f"], to=T.FLOAT),
        h.make_node("RandomNormalLike", ["x"], ["r"], name="noise"),
        h.make_node("Add", ["r", "f"], ["y"]),
    ]
    file = planted(nodes, opset=21)
    violations = lint(file)
    assert {v.rule for v in violations} == {"fp64", "forbidden-op", "opset"}
    with pytest.raises(UserError, match=r"model\.onnx breaks 3 export rule") as caught:
        require_clean(file)
    for violation in violations:
        assert str(violation) in str(caught.value)
        assert violation.rule in str(violation)
        assert violation.where in str(violation)
