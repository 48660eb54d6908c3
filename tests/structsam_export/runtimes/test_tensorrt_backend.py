"""The runner against a pretended CUDA and TensorRT; with a GPU, the same bundle for real."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.engine_entries import engine_file
from structsam_export.bundle.folder import Bundle
from structsam_export.engines.build import build
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions, find_backend
from structsam_export.runtimes.cuda_memory import Cuda, CudaError
from structsam_export.runtimes.device_buffers import DeviceBuffers
from tests.structsam_export.engine_bundle import EXPECTED, FEEDS, install, put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeTensorRT, Validity
from tests.structsam_export.small_bundle import make_bundle


def test_dynamic_decoder(bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda) -> None:
    with BACKENDS[backend].runner(bundle, "decoder", RunOptions()) as runner:
        held = len(cuda.alive)
        for size in (3, 1, 2):  # none comes again: no graphs
            feeds = {name: array[:size] for name, array in FEEDS.items()}
            np.testing.assert_array_equal(runner.run(feeds)["iou_predictions"], EXPECTED[:size])
        assert len(cuda.alive) == held, "buffers are allocated once"
        assert runner.describe()["gpu"] == "Pretended GPU"
        with pytest.raises(UserError, match="P is 65"):
            runner.run({n: np.zeros((65, *a.shape[1:]), a.dtype) for n, a in FEEDS.items()})
    runner.close()
    assert not cuda.alive


def test_outputs_are_copies(bundle: Bundle, backend: str, trt: FakeTensorRT) -> None:
    with BACKENDS[backend].runner(bundle, "decoder", RunOptions()) as runner:
        first = runner.run(FEEDS)["iou_predictions"]
        runner.run({name: array * 2 for name, array in FEEDS.items()})
    np.testing.assert_array_equal(first, EXPECTED)


def test_static_encoder_graph(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    image = np.ones((1, 3, 64, 64), np.float32)
    with BACKENDS[backend].runner(bundle, "encoder", RunOptions()) as runner:
        for _ in range(3):
            assert runner.run({"image": image})["image_embeddings"][0, 0, 0, 0] == 3 * 64 * 64
        note = runner.describe()["cuda_graph"]
    if backend == "tensorrt":
        assert note == "captured"
        assert cuda.calls.count("cudaStreamBeginCapture") == 1
        assert cuda.calls.count("cudaGraphLaunch") == 2
    else:
        assert trt.cuda_graph_strategy == "whole" and "cudaGraphLaunch" not in cuda.calls
    assert not cuda.alive


def test_without_a_graph_when_capture_fails(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install(monkeypatch, cuda, rtx=False)
    trt.refuse_capture = True
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, "tensorrt")
    with BACKENDS["tensorrt"].runner(bundle, "encoder", RunOptions()) as runner:
        for _ in range(2):
            image = np.ones((1, 3, 64, 64), np.float32)
            assert runner.run({"image": image})["image_embeddings"].max() == 3 * 64 * 64
        assert runner.describe()["cuda_graph"].startswith("not used: TensorRT could not run")


def test_runtime_cache_is_kept_beside_the_engine(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install(monkeypatch, cuda, rtx=True)
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, "tensorrt-rtx")
    cache = bundle.path / "engines" / "decoder.tensorrt-rtx.sm89.engine.runtime-cache"
    with BACKENDS["tensorrt-rtx"].runner(bundle, "decoder", RunOptions()) as runner:
        runner.run(FEEDS)
        assert cache.read_bytes() == b"compiled kernels"
        trt.compiled = b"more kernels"
    assert cache.read_bytes() == b"more kernels"
    trt.compiled = b""
    with BACKENDS["tensorrt-rtx"].runner(bundle, "decoder", RunOptions()) as runner:
        assert trt.compiled == b"more kernels"
    assert not list(cache.parent.glob(".*.tmp-*"))


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc"])
@pytest.mark.parametrize("successes", [0, 1, 2])
def test_out_of_memory_frees_everything(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda, call: str, successes: int
) -> None:
    cuda.fail = {call: successes}
    runner = BACKENDS[backend].runner(bundle, "decoder", RunOptions())
    with pytest.raises(UserError, match=r"GPU is out of memory.* 5 MiB free"):
        runner.open()
    assert not cuda.alive


def test_a_failing_run_and_a_failing_start(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    trt.contexts_left = 0
    with pytest.raises(UserError, match=r"cannot start .*decoder\..* 5 MiB free"):
        BACKENDS[backend].runner(bundle, "decoder", RunOptions()).open()
    trt.contexts_left, trt.refuse_run = -1, True
    with (
        pytest.raises(RuntimeError, match="could not run"),
        BACKENDS[backend].runner(bundle, "decoder", RunOptions()) as runner,
    ):
        runner.run(FEEDS)
    assert not cuda.alive


def test_what_makes_an_engine_unusable(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    fix = f"structsam-export build {bundle.path} --backend {backend} --target sm89"
    if backend == "tensorrt-rtx":
        trt.verdict = (Validity.INVALID, 5)
        with pytest.raises(BackendUnavailable, match="VERSION_MISMATCH, OLD_CUDA_DRIVER") as error:
            BACKENDS[backend].runner(bundle, "decoder", RunOptions()).open()
        assert fix in str(error.value)
        trt.verdict = (Validity.VALID, 0)
    put_engines(bundle, backend, {"encoder": b"decoder", "decoder": b"?"})
    with pytest.raises(BackendUnavailable, match="cannot load"):
        BACKENDS[backend].runner(bundle, "decoder", RunOptions()).open()
    with pytest.raises(BackendUnavailable, match=r"has the tensors \['iou_predictions'"):
        BACKENDS[backend].runner(bundle, "encoder", RunOptions()).open()
    runner = BACKENDS[backend].runner(bundle, "encoder", RunOptions())
    (bundle.path / engine_file(backend, "encoder", "sm89")).write_bytes(b"dEcoder")
    with pytest.raises(UserError, match="was altered"):
        runner.open()
    trt.__version__ = "11.0.0"
    with pytest.raises(BackendUnavailable, match="backend_version changed: ") as error:
        BACKENDS[backend].runner(bundle, "encoder", RunOptions())
    assert fix in str(error.value)
    trt.__version__, cuda.minor = ("1.7.1", 5) if backend == "tensorrt-rtx" else ("10.3.0", 7)
    cuda.major = 7 if backend == "tensorrt-rtx" else 8
    with pytest.raises(BackendUnavailable, match=f"no encoder engine .*{cuda.major}{cuda.minor}"):
        BACKENDS[backend].runner(bundle, "encoder", RunOptions())
    assert not cuda.alive


def test_another_gpu_of_the_same_kind(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    cuda.name = b"Another GPU"
    if backend == "tensorrt-rtx":
        BACKENDS[backend].runner(bundle, "encoder", RunOptions())
    else:
        with pytest.raises(BackendUnavailable, match="gpu changed: 'Pretended GPU'"):
            BACKENDS[backend].runner(bundle, "encoder", RunOptions())


def test_settings_of_the_build_do_not_matter_when_it_runs(
    bundle: Bundle, backend: str, trt: FakeTensorRT
) -> None:
    for entry in bundle.manifest["engines"]:
        entry["fingerprint"]["workspace_mb"] = 2048
    BACKENDS[backend].runner(bundle, "encoder", RunOptions())


class DriverlessCuda:
    """cuda-bindings 12.6 to 12.8 where there is no driver: every call raises."""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

        return call


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeCuda(devices=0), "no NVIDIA GPU is visible"),
        (FakeCuda(status=100), "no NVIDIA GPU is visible"),
        (FakeCuda(status=35, driver=0), "no NVIDIA driver is installed"),
        (FakeCuda(status=35), r"CUDA 12.6, and .* 13.0; .*pip install 'cuda-bindings<13'"),
        (DriverlessCuda(), r"no NVIDIA driver is installed.*\(Failed to dlopen libcuda.so.1\)"),
        (FakeCuda(status=999), "CUDA cannot start: a planted error"),
        (None, r"pip install 'structsam\[(rtx|tensorrt)\]'"),
    ],
)
def test_why_unavailable(
    backend: str,
    trt: FakeTensorRT,
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeCuda | None,
    reason: str,
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    answer = BACKENDS[backend].why_unavailable()
    assert answer is not None and re.search(reason, answer), answer


def test_a_gpu_that_rtx_does_not_know(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, cuda, rtx=True)
    cuda.major, cuda.minor = 9, 0
    assert "(sm90), only sm75 sm89; use the backend tensorrt" in str(
        BACKENDS["tensorrt-rtx"].why_unavailable()
    )


def test_auto_takes_an_engine_only_when_it_is_current(
    bundle: Bundle, backend: str, trt: FakeTensorRT
) -> None:
    pytest.importorskip("onnxruntime")
    assert find_backend("auto", bundle).name == backend
    assert not find_backend("auto").needs_engine
    bundle.manifest["engines"][1]["fingerprint"]["onnx_sha256"] = "0" * 64
    assert not find_backend("auto", bundle).needs_engine


def test_the_buffers_check_sizes_and_close_twice(cuda: FakeCuda) -> None:
    buffers = DeviceBuffers(Cuda(cuda), {"x": 8})
    with pytest.raises(RuntimeError, match="x needs 16 bytes, and has 8"):
        buffers.upload("x", np.zeros(4, np.float32), 0)
    buffers.close()
    buffers.close()
    assert not cuda.alive


def test_an_unexpected_cuda_error_is_a_defect(cuda: FakeCuda) -> None:
    cuda.fail = {"cudaStreamCreateWithFlags": 0}
    with pytest.raises(
        CudaError, match="cudaStreamCreateWithFlags failed with error 2: a planted error"
    ):
        Cuda(cuda).create_stream()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_on_a_real_gpu(tmp_path: Path, name: str) -> None:
    if reason := BACKENDS[name].why_unavailable():
        pytest.skip(f"not run: {reason}")
    bundle = make_bundle(tmp_path / "bundle")
    build(bundle, name)
    with BACKENDS[name].runner(bundle, "decoder", RunOptions()) as runner:
        for size in (3, 1, 2, 3):
            feeds = {n: array[:size] for n, array in FEEDS.items()}
            np.testing.assert_allclose(
                runner.run(feeds)["iou_predictions"], EXPECTED[:size], rtol=1e-3
            )
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(bundle.onnx_path("encoder"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": image})
    with BACKENDS[name].runner(bundle, "encoder", RunOptions()) as runner:
        for _ in range(3):
            found = runner.run({"image": image})["image_embeddings"]
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
        assert "captured" in runner.describe()["cuda_graph"]
    assert find_backend("auto", bundle).name == name
