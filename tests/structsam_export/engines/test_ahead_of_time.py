"""Every exported graph is parsed and built by TensorRT for RTX on the CPU, sm75 to sm121."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import EngineEntry
from structsam_export.engines.build import build
from structsam_export.graph.lint import lint

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")

SIX = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def targets_of(entries: list[EngineEntry]) -> dict[str, list[str]]:
    return {
        part: [entry.target for entry in entries if entry.part == part]
        for part in ("encoder", "decoder")
    }


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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("precision", "target"), [("fp16", "sm75"), ("fp32", "sm80")])
def test_vit_b_passes_parity_and_builds(tmp_path: Path, precision: str, target: str) -> None:
    """The main job at its real size, each precision for the oldest GPU that can take it."""
    from structsam_export import export

    bundle = export(
        "vit_b", rate=0.5, weights="random", precision=precision, targets=[target], out=tmp_path
    )
    assert bundle.parity, bundle.parity.verdict()
    (ran,) = [row for row in bundle.parity.rows if row.status != "not run"]
    assert (ran.backend, ran.status) == ("onnxruntime", "passed")
    assert ran.metrics["same_slot"] > 0.99
    if precision == "fp32":
        assert ran.metrics["relative_l2"] <= 1e-4
    assert targets_of(bundle.engines) == {"encoder": [target], "decoder": [target]}
    for part in ("encoder", "decoder"):
        assert lint(bundle.onnx_path(part)) == []
