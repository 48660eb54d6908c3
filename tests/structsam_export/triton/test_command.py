"""`structsam-export triton`: what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.cli.main import run

pytest.importorskip("onnx")

from tests.structsam_export.sam_like_bundle import make_sam_like_bundle
from tests.structsam_export.triton.bundles import put_plans


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_sam_like_bundle(tmp_path / "bundle")


def test_it_names_the_models_and_the_page(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models"
    assert run(["triton", str(bundle.path), "--out", str(out)]) == 0
    told, notes = capsys.readouterr()
    lines = told.splitlines()
    assert lines[0] == f"{out / 'structsam_encoder'}  onnxruntime"
    assert lines[-1] == f"how to serve it: {out / 'README.md'}" and (out / "README.md").is_file()
    assert "random weights" in notes
    assert run(["triton", str(bundle.path), "--out", str(out)]) == 2
    assert "or add --force to replace it" in capsys.readouterr().err
    assert run(["triton", str(bundle.path), "--out", str(out), "--force", "--name", "b"]) == 0
    assert (out / "b_masks").is_dir() and not (out / "structsam_masks").exists()


def test_json_names_the_tensorrt_that_the_server_needs(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_plans(bundle)
    out = str(tmp_path / "models")
    assert run(["triton", str(bundle.path), "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["repository"] == out and "structsam_masks" in told["models"]
    assert (told["backend"], told["tensorrt"]) == ("tensorrt", "10.13.0")


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "onnxruntime"), ("gpu", "tensorrt")])
def test_a_cpu_is_served_onnx_though_plans_are_there(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, backend: str
) -> None:
    put_plans(bundle)
    out = tmp_path / "models"
    assert run(["triton", str(bundle.path), "--out", str(out), "--kind", kind, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == backend
    for network in ("encoder", "decoder"):
        config = (out / f"structsam_{network}" / "config.pbtxt").read_text()
        assert f"KIND_{kind.upper()}" in config and f'backend: "{backend}"' in config


def test_what_cannot_be_served_is_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models"
    assert run(["triton", str(bundle.path), "--out", str(out), "--backend", "tensorrt"]) == 2
    assert "has no TensorRT plan of the encoder" in capsys.readouterr().err
    assert not out.exists()


def test_a_failed_parity_is_told_as_predict_tells_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.manifest["parity"] = {"passed": False, "verdict": "failed", "backends": {}}
    bundle.save_manifest()
    assert run(["triton", str(bundle.path), "--out", str(tmp_path / "models")]) == 0
    assert "this bundle failed parity" in capsys.readouterr().err
