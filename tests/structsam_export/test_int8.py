"""INT8 bundles from end to end: made, checked, and refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec
from structsam_export.bench.encoders import make_merged
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.graph.lint import lint
from structsam_export.parity import quantization
from structsam_export.parity.check import check
from structsam_export.pipeline import export
from structsam_export.predict.calibration_photos import CalibrationPhotos
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions
from tests.structsam_export.conftest import Exported

pytest.importorskip("onnxruntime")
KINDS = ("int8-fp32", "int8")


@pytest.mark.parametrize("precision", KINDS)
def test_an_export_says_what_int8_costs(
    tiny_export_factory: Callable[[str], Exported], precision: str
) -> None:
    exported = tiny_export_factory(precision)
    bundle = open_bundle(exported.path)
    assert bundle.name == f"tiny-structsam-r0.50-{precision}" and exported.report
    calibration = bundle.manifest["calibration"]
    assert calibration["method"] == "max"
    assert [len(calibration[part]) for part in ("measured", "held_out")] == [12, 4]
    cost = calibration["cost"]
    assert cost["photos"] == 4 and 0 < cost["min_mask_iou"] <= cost["mean_mask_iou"] < 1
    told = f"minimum {cost['min_mask_iou']:.4f}"
    assert told in exported.report.verdict() and told in bundle.parity_verdict.verdict
    assert told in (bundle.path / "parity.html").read_text()
    assert not list(bundle.path.glob(".calibration*")) and exported.stdout == ""


def test_the_cost_is_that_of_the_held_out_photos(
    tiny_bundle_factory: Callable[..., Bundle],
    tiny_sam_factory: Callable[..., Any],
    calibration_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exact encoder in INT8's place costs nothing."""
    from structsam.apply import apply_merging

    sam = apply_merging(tiny_sam_factory(seed=0), MergeConfig(rate=0.5))
    counts: list[tuple[str, int, int]] = []
    cost = quantization.quantization_cost(
        tiny_bundle_factory("fp32"),
        sam,
        [calibration_folder / "03.png"],
        lambda *told: counts.append(told),
    )
    assert cost.min_mask_iou > 0.999 and cost.masks > 20
    assert counts == [("comparing INT8 with FP32", done, 1) for done in (0, 1)]


def test_a_wrong_scale_fails_parity(
    tiny_bundle_factory: Callable[..., Bundle], tmp_path: Path
) -> None:
    """A range of a tenth, in both nodes of a pair: lint sees nothing wrong with that."""
    shutil.copytree(tiny_bundle_factory("int8-fp32").path, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    assert check(bundle, "onnxruntime")
    model = onnx.load(bundle.onnx_path("encoder"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("MatMul/scale"):
            scale = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(scale / 10), tensor.name))
    onnx.save(model, bundle.onnx_path("encoder"))
    report = check(bundle, "onnxruntime")
    assert not report and report.exit_code == 1


def test_openvino_reads_the_same_file(
    tiny_bundle_factory: Callable[..., Bundle], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    shutil.copytree(tiny_bundle_factory("int8-fp32").path, tmp_path / "copy")
    report = check(open_bundle(tmp_path / "copy"), "openvino")
    assert [row.status for row in report.rows] == ["passed"] and report, report.verdict()


def test_int8_for_gpus_is_not_computed_by_openvino_on_a_cpu(
    tiny_bundle_factory: Callable[..., Bundle],
) -> None:
    """Weights of eight bits: without VNNI the sums of their products are cut off."""
    pytest.importorskip("openvino")
    with pytest.raises(BackendUnavailable, match="Export with `precision=int8-fp32`"):
        BACKENDS["openvino"].runner(tiny_bundle_factory("int8"), "encoder", RunOptions())


def test_another_input_size_merged_and_in_int8(
    tiny_spec: ModelSpec,
    calibration_folder: Path,
    tiny_photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All levers together: a smaller input than the trained one, merging, and INT8."""
    monkeypatch.setitem(MODELS, "larger", replace(tiny_spec, name="larger", image_size=288))
    result = export(
        "larger", rate=0.5, weights="random", image_size=256,
        precision="int8-fp32", calibrate=calibration_folder, backend="onnxruntime",
        images=[tiny_photo], out=tmp_path,
    )  # fmt: skip
    assert result.path.name == "larger-256-structsam-r0.50-int8-fp32"
    assert result.parity, result.parity.verdict()
    bundle = open_bundle(result.path)
    encoder = bundle.onnx_path("encoder")
    assert lint(encoder) == []
    pairs = [n for n in onnx.load(encoder, load_external_data=False).graph.node
             if n.op_type == "QuantizeLinear"]  # fmt: skip
    assert len(pairs) >= 4 * tiny_spec.depth
    assert bundle.part("encoder").inputs[0].shape == (1, 3, 256, 256)
    assert 0 < bundle.manifest["calibration"]["cost"]["mean_mask_iou"] < 1


def test_torch_does_not_stand_in_for_int8(tiny_bundle_factory: Callable[..., Bundle]) -> None:
    bundle = tiny_bundle_factory("int8-fp32")
    for name in ("torch", "torch-compile"):
        with pytest.raises(BackendUnavailable, match="INT8 is in the bundle's ONNX alone|compiler"):
            BACKENDS[name].runner(bundle, "encoder", RunOptions())
    assert check(bundle, "torch").exit_code == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "int8"}, "Add `calibrate=` with a folder of 16 to 128 photos"),
        ({"precision": "int8-fp32", "calibrate": "nowhere"}, "no calibration photos at nowhere"),
        ({"precision": "fp16", "calibrate": "."}, "`calibrate=` is for INT8"),
        ({"precision": "int4"}, "Use one of: fp32, fp16, int8, int8-fp32, int8-attention-fp32"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_model: str, tmp_path: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        export(tiny_model, rate=0.5, weights="random", out=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_within_calibration_leaves_nothing(
    fast_graphs: str, calibration_folder: Path, tiny_photo: Path, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(
            fast_graphs,
            rate=0.5,
            weights="random",
            precision="int8-fp32",
            calibrate=calibration_folder,
            backend="onnxruntime",
            images=[tiny_photo],
            out=tmp_path / "out",
            count=stop,
        )
    assert not list((tmp_path / "out").iterdir())


def test_bench_makes_int8_encoders_once(
    fast_graphs: str, tiny_spec: Any, calibration_folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    photos = CalibrationPhotos.of(calibration_folder)
    made = [
        bundle
        for _ in range(2)
        for bundle in make_merged(
            tiny_spec, [MergeConfig(rate=0.5)], "int8-fp32", 1, tmp_path, said.append, photos
        )
    ]
    assert [bundle.precision for bundle in made] == ["int8-fp32"] * 2
    assert len([text for text in said if text.startswith("exporting")]) == 1
    assert lint(made[0].onnx_path("encoder")) == []
    names = [photo["name"] for photo in made[0].manifest["calibration"]["measured"]]
    assert names == [path.name for path in photos.measured]
