"""ONNX Runtime's settings on the CPU and on a pretended CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions
from tests.structsam_export.fake_onnxruntime import CUDA, FakeOnnxRuntime
from tests.structsam_export.small_bundle import make_bundle

IMAGE = {"image": np.ones((1, 3, 64, 64), np.float32)}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def open_and_run(bundle: Bundle, backend: str) -> dict[str, Any]:
    with BACKENDS[backend].runner(bundle, "encoder", RunOptions()) as runner:
        return runner.run(IMAGE)


def test_what_is_tuned_for_the_cpu_stays_there(bundle: Bundle, ort: FakeOnnxRuntime) -> None:
    open_and_run(bundle, "onnxruntime")
    assert not ort.opened[0]["options"].enable_mem_pattern
    assert ort.preloaded == 0


def test_cuda_of_pip_is_loaded_first(bundle: Bundle, ort: FakeOnnxRuntime) -> None:
    open_and_run(bundle, "onnxruntime-cuda")
    (opened,) = ort.opened
    assert ort.preloaded == 1
    assert opened["options"].enable_mem_pattern
    name, settings = opened["providers"][0]
    assert name == CUDA and settings["use_tf32"] == "0"


def test_an_older_onnxruntime_needs_no_preloading(
    bundle: Bundle, ort: FakeOnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort.real, "preload_dlls", raising=False)
    monkeypatch.delattr(FakeOnnxRuntime, "preload_dlls")
    open_and_run(bundle, "onnxruntime-cuda")


def test_a_silent_fallback_says_what_is_missing(
    bundle: Bundle, ort: FakeOnnxRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    ort.cuda_starts, ort.missing = False, ("libcudnn.so.9", "libcublas.so.13")
    with pytest.raises(BackendUnavailable) as caught:
        open_and_run(bundle, "onnxruntime-cuda")
    assert "Failed to load libcudnn.so.9: no such file; Failed to load libcublas" in str(
        caught.value
    )
    assert "pip install 'structsam[gpu]'" in str(caught.value)
    assert capsys.readouterr().out == "", "what it prints would spoil --json"
