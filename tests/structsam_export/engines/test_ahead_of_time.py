"""Every exported graph is parsed and built by TensorRT for RTX on the CPU, sm75 to sm121."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from structsam.errors import UserError
from structsam.models import MODELS
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import EngineEntry
from structsam_export.engines.build import _parse, build
from structsam_export.graph.lint import lint
from structsam_export.runtimes.tensorrt_module import FLAVOURS, load_module

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")

SIX = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def targets_of(entries: list[EngineEntry]) -> dict[str, list[str]]:
    return {
        part: [entry.target for entry in entries if entry.part == part]
        for part in ("encoder", "decoder")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "expected"), [("fp16", SIX), ("fp32", SIX[1:])])
def test_a_tiny_bundle_builds_for_every_target(
    tiny_bundle_factory: Callable[..., Bundle],
    tmp_path: Path,
    precision: str,
    expected: list[str],
) -> None:
    """TensorRT for RTX has no float32 matmul for Turing."""
    shutil.copytree(tiny_bundle_factory(precision).path, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    entries = build(bundle, "tensorrt-rtx", targets=["all"])
    assert targets_of(entries) == {"encoder": expected, "decoder": expected}
    if precision == "fp32":
        with pytest.raises(UserError, match="no float32 matmul for sm75"):
            build(bundle, "tensorrt-rtx", targets=["sm75"])
    open_bundle(bundle.path)  # the engines are recorded with their hashes
    for entry in entries:
        assert (bundle.path / entry.file).stat().st_size == entry.size > 100_000


@pytest.mark.parametrize("precision", ["int8", "int8-fp32"])
def test_int8_builds_for_the_oldest_and_the_newest_gpu(
    tiny_bundle_factory: Callable[..., Bundle], tmp_path: Path, precision: str
) -> None:
    """Turing as well, where the rest is FP16: ahead of time the builder takes it."""
    shutil.copytree(tiny_bundle_factory(precision).path, tmp_path / "copy")
    bundle, targets = open_bundle(tmp_path / "copy"), ["sm75", "sm121"]
    if precision == "int8-fp32":
        with pytest.raises(UserError, match="no float32 matmul for sm75"):
            build(bundle, "tensorrt-rtx", targets=["sm75"])
        targets = ["sm80", "sm121"]
    entries = build(bundle, "tensorrt-rtx", targets=targets, parts=["encoder"])
    assert targets_of(entries) == {"encoder": targets, "decoder": []}


@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8", "int8-fp32"])
def test_plans_stay_int32_whatever_the_precision(
    tiny_bundle_factory: Callable[..., Bundle], precision: str
) -> None:
    bundle, flavour = tiny_bundle_factory(precision), FLAVOURS["tensorrt-rtx"]
    trt = load_module(flavour)
    network = _parse(trt, flavour, bundle, "encoder").network
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    kinds = {"float32": trt.float32, "int32": trt.int32}
    wanted = [(spec.name, kinds[spec.dtype]) for spec in bundle.part("encoder").all_outputs]
    assert [(tensor.name, tensor.dtype) for tensor in outputs] == wanted


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("without_openvino")
def test_vit_b_passes_parity_and_builds(tmp_path: Path) -> None:
    """The main job at its real size, for the oldest GPU that can take it."""
    export_and_build("vit_b", "fp16", "sm75", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("without_openvino")
@pytest.mark.parametrize(("precision", "target"), [("fp32", "sm80"), ("int8", "sm89")])
def test_vit_b_at_768_passes_parity_and_builds(
    calibration_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    target: str,
) -> None:
    """A window and a global block of its real width, at 768 pixels."""
    two_blocks = replace(MODELS["vit_b"], name="vit_b2", depth=2, global_blocks=(1,))
    monkeypatch.setitem(MODELS, two_blocks.name, two_blocks)
    more = {"calibrate": calibration_folder} if precision == "int8" else {}
    ran = export_and_build(two_blocks.name, precision, target, tmp_path, image_size=768, **more)
    if precision == "fp32":
        assert ran.metrics["relative_l2"] <= 1e-4


def export_and_build(
    model: str,
    precision: str,
    target: str,
    out: Path,
    image_size: int | None = None,
    calibrate: Path | None = None,
) -> Any:
    """Assert that everything went well, and return the row of parity that ran."""
    from structsam_export import export

    bundle = export(
        model,
        rate=0.5,
        weights="random",
        image_size=image_size,
        precision=precision,
        calibrate=calibrate,
        targets=[target],
        out=out,
    )
    assert bundle.parity, bundle.parity.verdict()
    ran = next(row for row in bundle.parity.rows if row.backend == "onnxruntime")
    assert ran.status == "passed"
    assert ran.metrics["same_slot"] > 0.99
    assert targets_of(bundle.engines) == {"encoder": [target], "decoder": [target]}
    for part in ("encoder", "decoder"):
        assert lint(bundle.onnx_path(part)) == []
    return ran
