"""Fixtures: a pretended GPU, each TensorRT on it, and a small bundle with engines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import onnxruntime_backend
from tests.structsam_export.engine_bundle import install, put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_onnxruntime import FakeOnnxRuntime
from tests.structsam_export.fake_tensorrt import FakeTensorRT
from tests.structsam_export.small_bundle import make_bundle


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    yield fake
    assert fake.wrong_releases == []


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, backend: str) -> FakeTensorRT:
    return install(monkeypatch, cuda, backend == "tensorrt-rtx")


@pytest.fixture
def bundle(tmp_path: Path, backend: str) -> Bundle:
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, backend)
    return bundle


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    fake = FakeOnnxRuntime(pytest.importorskip("onnxruntime"))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(onnxruntime_backend, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(onnxruntime_backend.importlib.util, "find_spec", lambda name: fake)
    return fake
