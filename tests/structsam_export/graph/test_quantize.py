"""INT8 linear layers: what is quantised, how well, and every fault that lint or a guard sees."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.graph.activation_ranges import ActivationRanges, measure_ranges
from structsam_export.graph.lint import lint
from structsam_export.graph.quantize import (
    LARGEST,
    LARGEST_ON_CPUS,
    quantize_linear_layers,
)
from structsam_export.predict.preprocessing import read_photo

LINEAR = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
NAMES = {f"blocks.{block}.{layer}/MatMul" for block in range(3) for layer in LINEAR}


@pytest.fixture(scope="module")
def photo_feeds(tiny_bundle: Bundle, calibration_folder: Path) -> list[dict[str, np.ndarray]]:
    files = sorted(calibration_folder.glob("*.png"))[:3]
    return [{"image": read_photo(file, tiny_bundle.preprocessing).pixels} for file in files]


@pytest.fixture(scope="module")
def ranges(tiny_bundle: Bundle, photo_feeds: list[dict[str, np.ndarray]]) -> ActivationRanges:
    return measure_ranges(tiny_bundle.onnx_path("encoder"), iter(photo_feeds))


@pytest.fixture(scope="module")
def quantized(
    tiny_bundle_factory: Callable[..., Bundle],
    ranges: ActivationRanges,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """`quantized("fp32" or "fp16")`: the tiny encoder with these ranges. Read only."""
    folder = tmp_path_factory.mktemp("quantized")

    def file(precision: str) -> Path:
        target = folder / f"{precision}.onnx"
        if not target.exists():
            source = tiny_bundle_factory(precision).onnx_path("encoder")
            quantize_linear_layers(source, target, ranges)
        return target

    return file


@pytest.fixture
def damaged(
    quantized: Callable[[str], Path], tmp_path: Path
) -> Iterator[tuple[onnx.ModelProto, Callable[[], list[str]]]]:
    """The INT8 graph, and what lint says of it once it was changed."""
    model = onnx.load(quantized("fp32"))

    def found() -> list[str]:
        onnx.save(model, tmp_path / "damaged.onnx")
        return list(map(str, lint(tmp_path / "damaged.onnx")))

    return model, found


def run(file: Path, feed: dict[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(list(outputs) or None, feed))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_linear_layer_of_the_blocks_and_nothing_else(
    quantized: Callable[[str], Path], tiny_bundle_factory: Callable[..., Bundle], precision: str
) -> None:
    model = onnx.load(quantized(precision))
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        from_pair = [
            made_by[name].op_type == "DequantizeLinear" for name in node.input if name in made_by
        ]
        if node.name in NAMES:
            assert from_pair == [True, True]
        elif node.op_type != "QuantizeLinear":
            assert not any(from_pair), node.name
    assert {node.name for node in model.graph.node} >= NAMES
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == len(NAMES)
    assert lint(quantized(precision)) == []
    before = onnx.load(tiny_bundle_factory(precision).onnx_path("encoder"))
    assert model.graph.output == before.graph.output and model.graph.input == before.graph.input
    assert list(model.metadata_props) == list(before.metadata_props)  # of the plan outputs
    sizes = [quantized(precision).stat().st_size, len(before.SerializeToString())]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(("precision", "steps"), [("fp32", 63), ("fp16", 127)])
def test_scales_are_the_largest_of_what_torch_computes(
    quantized: Callable[[str], Path],
    tiny_sam_factory: Callable[..., Any],
    photo_feeds: list[dict[str, np.ndarray]],
    precision: str,
    steps: int,
) -> None:
    """Hooks of PyTorch are the independent judge; weights are rounded by at most half a step."""
    import torch

    from structsam.apply import apply_merging
    from structsam.config import MergeConfig

    encoder = apply_merging(tiny_sam_factory(seed=0), MergeConfig(rate=0.5)).image_encoder
    largest: dict[str, float] = {}

    def hook(name: str) -> Any:
        def look(module: Any, inputs: tuple[Any, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return look

    modules = {name: m for name, m in encoder.named_modules() if f"{name}/MatMul" in NAMES}
    for name, module in modules.items():
        module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for feed in photo_feeds:
            encoder(torch.from_numpy(feed["image"]))
    model = onnx.load(quantized(precision))
    values = constants(model)
    half = precision == "fp16"  # scales have its 11 bits
    quantizers = {n.name: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for name, module in modules.items():
        scale = values[quantizers[f"{name}/DequantizeLinear"].input[1]]
        assert scale == pytest.approx(largest[name] / 127, rel=1e-3 if half else 1e-4)
        integers, scales = (
            values[i] for i in quantizers[f"{name}/DequantizeLinear_weight"].input[:2]
        )
        assert integers.dtype == np.int8 and np.abs(integers).max(0).min() == steps
        weight = module.weight.detach().numpy().T
        near = scales.astype(np.float32) * (0.6 if half else 0.5001)
        assert (np.abs(integers * scales.astype(np.float32) - weight) <= near).all()


def test_no_sum_of_two_products_leaves_16_bits_on_a_cpu() -> None:
    """Where there is no VNNI, activations are shifted to 0..255 and products added in pairs."""
    assert 2 * 255 * LARGEST_ON_CPUS <= np.iinfo(np.int16).max < 2 * 255 * LARGEST


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_computes_nearly_the_same(
    quantized: Callable[[str], Path],
    tiny_bundle_factory: Callable[..., Bundle],
    photo_feeds: list[dict[str, np.ndarray]],
    precision: str,
) -> None:
    feed = photo_feeds[0]
    plain = tiny_bundle_factory(precision).onnx_path("encoder")
    (a,), (b,) = (run(file, feed, "image_embeddings") for file in (plain, quantized(precision)))
    assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.1


def test_products_of_softmax_and_values_are_quantised_when_asked(
    tiny_bundle: Bundle, photo_feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source, target = tiny_bundle.onnx_path("encoder"), tmp_path / "attention.onnx"
    ranges = measure_ranges(source, photo_feeds, attention=True)
    assert len(ranges.factors) == 3
    quantize_linear_layers(source, target, ranges)
    assert lint(target) == []
    model = onnx.load(target)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 12 + 2 * 3
    unsigned = [n for n in model.graph.node if "uint8_zero" in n.input]
    softmax = {n.output[0] for n in model.graph.node if n.op_type == "Softmax"}
    assert len(unsigned) == 6 and {n.input[0] for n in unsigned} >= softmax
    (a,), (b,) = (run(file, photo_feeds[0], "image_embeddings") for file in (source, target))
    assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.2


def test_onnx_runtime_multiplies_integers(quantized: Callable[[str], Path], tmp_path: Path) -> None:
    """A `Gemm` with a bias of floats would be dequantised first, and be no faster."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(quantized("fp32")), options, providers=["CPUExecutionProvider"])
    operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == len(NAMES)
    assert "DequantizeLinear" not in operators


def test_a_stage_has_nodes_with_names_of_their_own_and_its_residual_additions(
    tiny_sam_factory: Callable[..., Any], photo_feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Its linear layers are Gemm, with the bias: what is added next is no bias."""
    from structsam.apply import apply_merging
    from structsam.config import MergeConfig
    from structsam_export.graph.exporter import export_encoder
    from structsam_export.graph.modules import EncoderModule

    encoder = apply_merging(
        tiny_sam_factory().image_encoder, MergeConfig(rate=0.5, placement="stage")
    )
    export_encoder(EncoderModule(encoder, plan_outputs=False), tmp_path, "fp32.onnx")
    ranges = measure_ranges(tmp_path / "fp32.onnx", photo_feeds[:1])
    quantize_linear_layers(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", ranges)
    names = [node.name for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert len(set(names)) == len(names)
    run(tmp_path / "int8.onnx", photo_feeds[0], "image_embeddings")


@pytest.mark.parametrize("change", ["weights", "merging"])
def test_ranges_of_another_graph_are_refused(
    tiny_bundle: Bundle, ranges: ActivationRanges, tmp_path: Path, change: str
) -> None:
    model = onnx.load(tiny_bundle.onnx_path("encoder"))
    layer = next(node for node in model.graph.node if node.name.startswith("blocks.1.mlp.lin1"))
    if change == "weights":
        weight = next(t for t in model.graph.initializer if t.name == layer.input[1])
        values = numpy_helper.to_array(weight).copy()
        values[0, 0] += 0.5
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    else:
        value = next(v for v in model.graph.value_info if v.name == layer.input[0])
        value.type.tensor_type.shape.dim[1].dim_value += 1
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="measured in another graph than other.onnx"):
        quantize_linear_layers(tmp_path / "other.onnx", tmp_path / "never.onnx", ranges)
    assert not (tmp_path / "never.onnx").exists()


def test_a_graph_without_names_of_sam_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(UserError, match="no node of the graph is named after a linear layer"):
        measure_ranges(tiny_bundle.onnx_path("decoder"), [])


def test_no_photos_and_infinite_activations_are_refused(
    tiny_bundle: Bundle, photo_feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="given no photos"):
        measure_ranges(tiny_bundle.onnx_path("encoder"), [])
    model = onnx.load(tiny_bundle.onnx_path("encoder"))
    norm = node_of(model, "blocks.2.norm2/LayerNormalization")
    set_constant(model, norm.input[2], np.full(32, np.inf))
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(UserError, match="before blocks.2.mlp.lin1/MatMul are not finite"):
        measure_ranges(tmp_path / "broken.onnx", photo_feeds)


# What lint sees


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_constant(model: onnx.ModelProto, name: str, values: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, old.dtype), name))


def add_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def test_a_pair_on_a_residual_addition_is_seen(damaged: Any) -> None:
    model, found = damaged
    addition = next(n for n in model.graph.node if re.fullmatch(r"blocks\.1/Add.*", n.name))
    scale, zero = node_of(model, "blocks.1.mlp.lin1/QuantizeLinear").input[1:]
    position = list(model.graph.node).index(addition)
    first = addition.input[0]
    pair = [
        helper.make_node("QuantizeLinear", [first, scale, zero], ["r8"], "planted/QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["r8", scale, zero], ["r"], "planted/Dequantize"),
    ]
    addition.input[0] = "r"
    for node in reversed(pair):
        model.graph.node.insert(position, node)
    (told,) = found()
    assert "planted/Dequantize" in told and "no linear layer of the blocks" in told


def test_an_asymmetric_zero_point_is_seen(damaged: Any) -> None:
    model, found = damaged
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        node = node_of(model, f"blocks.0.attn.qkv/{kind}")
        node.input[2] = "three"
    add_constant(model, "three", np.array(3, np.int8))
    told = found()
    assert len(told) == 2 and all("zero point is not 0" in each for each in told)


def test_unsigned_integers_are_seen(damaged: Any) -> None:
    model, found = damaged
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        node_of(model, f"blocks.0.attn.qkv/{kind}").input[2] = "unsigned"
    add_constant(model, "unsigned", np.array(0, np.uint8))
    assert all("zero point is no int8 constant" in each for each in found())


def test_a_scale_that_is_not_that_of_its_partner_is_seen(damaged: Any) -> None:
    model, found = damaged
    node = node_of(model, "blocks.2.mlp.lin2/DequantizeLinear")
    old = constants(model)[node.input[1]]
    node.input[1] = add_constant(model, "doubled", old * 2)
    (told,) = found()
    assert "blocks.2.mlp.lin2" in told and "another scale" in told


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_none_is_seen(damaged: Any, value: float) -> None:
    model, found = damaged
    set_constant(model, node_of(model, "blocks.2.mlp.lin2/QuantizeLinear").input[1], value)
    assert any("not positive and finite" in each for each in found())


def test_one_scale_for_all_channels_of_a_weight_is_seen(damaged: Any) -> None:
    model, found = damaged
    node = node_of(model, "blocks.2.mlp.lin2/DequantizeLinear_weight")
    node.input[1] = add_constant(model, "one", np.array(0.01, np.float32))
    node.input[2] = "int8_zero"
    assert any("not one per output channel" in each for each in found())


def test_int8_that_another_node_reads_is_seen(damaged: Any) -> None:
    model, found = damaged
    integers = node_of(model, "blocks.0.attn.qkv/QuantizeLinear").output[0]
    model.graph.node.append(
        helper.make_node("Cast", [integers], ["leak"], "leak", to=TensorProto.FLOAT)
    )
    assert any("only DequantizeLinear may" in each for each in found())
