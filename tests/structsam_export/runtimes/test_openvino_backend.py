"""OpenVINO on this CPU: its settings, what it keeps in a bundle, devices that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.parity.check import check
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions, find_backend
from structsam_export.runtimes.openvino_backend import OpenVinoBackend, OpenVinoRunner
from structsam_export.runtimes.openvino_select import select_in_floats
from tests.structsam_export.small_bundle import make_bundle

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
IMAGE = {"image": np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def opened(bundle: Bundle, backend: str = "openvino", **options: Any) -> dict[str, Any]:
    """Run the encoder, and return what the runner says of itself, with its `answer`."""
    with find_backend(backend).runner(bundle, "encoder", RunOptions(**options)) as runner:
        answer = runner.run(IMAGE)["image_embeddings"]
        return {**runner.describe(), "answer": answer}


def blobs(bundle: Bundle) -> list[Path]:
    return sorted((bundle.path / "engines" / "openvino" / "encoder").glob("*.blob"))


def test_it_computes_in_f32_where_it_would_have_taken_bf16(bundle: Bundle) -> None:
    assert opened(bundle, threads=1) | {"answer": 0} == {
        "device": "cpu",
        "precision": "f32",
        "threads": 1,
        "from_cache": False,
        "answer": 0,
    }
    core = openvino.Core()
    usual = core.compile_model(core.read_model(bundle.onnx_path("encoder")), "CPU")
    if usual.get_property("INFERENCE_PRECISION_HINT").to_string() != "bf16":
        pytest.skip("without AMX its own choice is f32, too")


def test_another_type_is_asked_for_by_name(bundle: Bundle) -> None:
    try:
        assert opened(bundle, "openvino:bf16")["precision"] == "bf16"
    except BackendUnavailable as refused:
        assert str(refused) == (
            "OpenVINO computes in f32 on this CPU, which has no bf16; choose openvino:f32"
        )
    assert find_backend("openvino:cpu:F32").name == "openvino:f32"
    assert find_backend("openvino:gpu.1:f16").name == "openvino:GPU.1:f16"
    with pytest.raises(UserError, match="'int4' is no type .* Use one of: f32, f16, bf16"):
        find_backend("openvino:GPU:int4")


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("CPU", "fp16", "f32"),
        ("CPU", "fp32", "f32"),
        ("GPU", "fp32", "f32"),
        ("GPU", "fp16", "f16"),
    ],
)
def test_on_gpus_bundles_of_fp16_are_computed_in_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, device: str, precision: str, expected: str
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "why_unavailable", lambda self: None)
    bundle.manifest["precision"]["name"] = precision
    runner = OpenVinoBackend(device).runner(bundle, "encoder", RunOptions())
    assert isinstance(runner, OpenVinoRunner) and runner._compute_type == expected


def test_a_device_that_is_not_there_names_those_that_are(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match="OpenVINO finds no NPU here, only CPU"):
        find_backend("openvino:NPU").runner(bundle, "encoder", RunOptions())
    with pytest.raises(UserError, match="backend onnxruntime takes no device. Leave `:GPU` out"):
        find_backend("onnxruntime:GPU")


def test_the_first_gpu_is_meant_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        available_devices = ("CPU", "GPU.0", "GPU.1")

    monkeypatch.setattr(openvino, "Core", Core)
    assert OpenVinoBackend("GPU").why_unavailable() is None
    assert OpenVinoBackend("GPU.1").why_unavailable() is None
    assert "finds no GPU.2 here, only CPU, GPU.0, GPU.1" in str(
        OpenVinoBackend("GPU.2").why_unavailable()
    )


def test_what_it_compiled_is_used_by_the_next_and_is_no_part_of_the_bundle(
    bundle: Bundle, tmp_path: Path
) -> None:
    first, second = opened(bundle), opened(bundle)
    assert (first["from_cache"], second["from_cache"]) == (False, True)
    np.testing.assert_array_equal(first["answer"], second["answer"])
    open_bundle(bundle.path)
    moved = open_bundle(shutil.copytree(bundle.path, tmp_path / "moved"))
    assert opened(moved)["from_cache"]
    shutil.rmtree(bundle.path / "engines")
    assert not opened(bundle)["from_cache"]


def test_a_changed_cache_is_not_used(bundle: Bundle) -> None:
    expected = opened(bundle)["answer"]
    (blob,) = blobs(bundle)
    whole = blob.read_bytes()
    weight = onnx.numpy_helper.to_array(onnx.load(bundle.onnx_path("encoder")).graph.initializer[0])
    place = whole.index(weight.astype(np.float32).tobytes()[:16])
    blob.write_bytes(whole[:place] + np.full(4, 7, np.float32).tobytes() + whole[place + 16 :])
    for _ in range(2):
        np.testing.assert_array_equal(opened(bundle)["answer"], expected)
    assert opened(bundle)["from_cache"], "it was compiled anew"
    blobs(bundle)[0].write_bytes(whole[:-100])
    assert not opened(bundle)["from_cache"]


def test_a_network_of_other_weights_is_compiled(bundle: Bundle) -> None:
    before = opened(bundle)["answer"]
    file = bundle.onnx_path("encoder")
    model = onnx.load(file)
    (weight,) = model.graph.initializer
    doubled = 2 * onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    onnx.save(model, file)
    after = opened(bundle)
    assert not after["from_cache"]
    np.testing.assert_allclose(after["answer"], 2 * before, rtol=1e-5)


def test_it_runs_where_nothing_can_be_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(bundle, keep_compiled=False)["answer"]
    assert not (bundle.path / "engines").exists()
    (bundle.path / "engines").write_text("no folder, as on a read-only disk")
    np.testing.assert_array_equal(opened(bundle)["answer"], expected)
    (bundle.path / "engines").unlink()

    def refused(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        if "CACHE_DIR" in settings:
            raise RuntimeError("Exception from core.cpp:117:\nno space left on device")
        return compile_model(core, model, device, settings)

    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", refused)
    np.testing.assert_array_equal(opened(bundle)["answer"], expected)


def test_a_network_that_it_cannot_compile_is_one_line(bundle: Bundle) -> None:
    bundle.onnx_path("encoder").write_bytes(b"no ONNX")
    with pytest.raises(BackendUnavailable) as caught:
        opened(bundle)
    told = str(caught.value)
    assert told.startswith("OpenVINO cannot run encoder.onnx on CPU: ") and "\n" not in told


def test_the_decoder_takes_any_number_of_prompts_and_points(bundle: Bundle) -> None:
    with BACKENDS["openvino"].runner(bundle, "decoder", RunOptions(1)) as runner:
        for prompts, points in ((1, 1), (3, 2), (64, 16), (1, 1)):
            coords = np.full((prompts, points, 2), 2, np.float32)
            labels = np.ones((prompts, points), np.float32)
            scores = runner.run({"point_coords": coords, "point_labels": labels})["iou_predictions"]
            np.testing.assert_array_equal(scores, np.full((prompts, 4), 5 * points))


def test_an_answer_holds_when_it_runs_again(bundle: Bundle) -> None:
    with BACKENDS["openvino"].runner(bundle, "encoder", RunOptions(1)) as runner:
        first = runner.run(IMAGE)["image_embeddings"]
        kept = first.copy()
        runner.run({"image": 3 * IMAGE["image"]})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parity_of_a_real_bundle(tiny_bundle_factory: Any, precision: str, tmp_path: Path) -> None:
    made = tiny_bundle_factory(precision)
    own = open_bundle(shutil.copytree(made.path, tmp_path / "own"), verify=False)
    report = check(own, "openvino", options=RunOptions(threads=1))
    (row,) = report.rows
    assert report or precision == "fp16", "masks of random weights lie near a gate of FP16"
    assert row.metrics["same_slot"] == 1 and row.metrics["mean_mask_iou"] > 0.998
    assert row.metrics["relative_l2"] < {"fp32": 1e-5, "fp16": 1e-3}[precision]


def test_a_check_of_all_backends_leaves_nothing_of_it(own_bundle: Bundle) -> None:
    report = check(own_bundle, "auto", options=RunOptions(threads=1))
    assert {row.backend: row.status for row in report.rows}["openvino"] == "passed"
    assert not (own_bundle.path / "engines").exists()


def test_choices_between_integers_are_right_where_denormals_are_flushed() -> None:
    """Without AVX-512 every condition is false otherwise; with it, the graph is looked at alone."""
    from openvino import opset13 as operators

    rng = np.random.default_rng(0)
    ranks, slots = rng.integers(0, 49, (2, 4, 49))
    places = [operators.parameter([4, 49], np.int64, name) for name in ("ranks", "slots")]
    few = operators.less(places[0], operators.constant(np.int64(33)))
    chosen = operators.select(few, *places)
    chosen.output(0).set_names({"slot"})
    model = openvino.Model([operators.result(chosen), operators.result(few)], places)
    assert select_in_floats(model) == 1 and select_in_floats(model) == 0
    kinds = {node.get_type_name(): node.get_output_element_type(0) for node in model.get_ops()}
    assert kinds["Select"] == openvino.Type.f32
    settings = {"CPU_DENORMALS_OPTIMIZATION": True, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer({0: ranks, 1: slots})
    found = request.get_tensor("slot").data
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.where(ranks < 33, ranks, slots))
