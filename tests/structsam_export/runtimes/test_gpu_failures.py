"""What may go wrong on a GPU: nothing leaks, and the first error is the one that is shown."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.engine_entries import engine_file
from structsam_export.bundle.folder import Bundle
from structsam_export.engines.build import build
from structsam_export.runtimes import BACKENDS, BackendUnavailable, RunOptions
from structsam_export.runtimes.base import Runner
from structsam_export.runtimes.cuda_memory import Cuda, CudaError
from tests.structsam_export.engine_bundle import EXPECTED, FEEDS, install, put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeTensorRT
from tests.structsam_export.small_bundle import make_bundle

IMAGE = {"image": np.ones((1, 3, 64, 64), np.float32)}


def decoder(bundle: Bundle, backend: str) -> Runner:
    return BACKENDS[backend].runner(bundle, "decoder", RunOptions())


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> FakeTensorRT:
    return install(monkeypatch, cuda, rtx=True)


@pytest.fixture
def rtx_bundle(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, "tensorrt-rtx")
    return bundle


def test_what_was_captured_before_a_failure_is_destroyed(cuda: FakeCuda) -> None:
    wrapped = Cuda(cuda)
    stream = wrapped.create_stream()

    def work() -> None:
        raise RuntimeError("the work failed")

    with pytest.raises(RuntimeError, match="the work failed"):
        wrapped.capture(stream, work)
    assert list(cuda.alive) == [stream] and not cuda.capturing


def test_an_invalidated_capture_gives_no_graph_to_destroy(cuda: FakeCuda) -> None:
    wrapped = Cuda(cuda)
    stream = wrapped.create_stream()
    with pytest.raises(CudaError, match="cudaMalloc failed with error 900"):
        wrapped.capture(stream, lambda: wrapped.allocate(8) and None)
    with pytest.raises(CudaError, match="cudaStreamSynchronize failed with error 900"):
        wrapped.capture(stream, lambda: wrapped.synchronize(stream))
    assert list(cuda.alive) == [stream]


@pytest.mark.parametrize(
    "call", ["cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaGraphExecDestroy"]
)
def test_one_failing_release_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, call: str
) -> None:
    install(monkeypatch, cuda, rtx=False)
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, "tensorrt")
    with BACKENDS["tensorrt"].runner(bundle, "encoder", RunOptions()) as runner:
        runner.run(IMAGE)
        cuda.fail_once = {call: 0}
    assert not cuda.fail_once, "the failure happened"
    assert len(cuda.alive) == 1


def test_a_refused_address_is_an_error_with_the_reason(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    trt.refuse_address = ("point_labels",)
    with pytest.raises(RuntimeError, match=r"the memory of point_labels: no address for point_la"):
        decoder(bundle, backend).open()
    assert not cuda.alive


def test_a_refused_runtime_cache_is_not_written(
    rtx_bundle: Bundle, rtx: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "structsam_export")
    rtx.refuse_cache = True
    with decoder(rtx_bundle, "tensorrt-rtx") as runner:
        np.testing.assert_array_equal(runner.run(FEEDS)["iou_predictions"], EXPECTED)
    assert not list(rtx_bundle.path.rglob("*.runtime-cache"))
    assert "takes no runtime cache" in caplog.text


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        ("no_runtime_cache", "gives no runtime cache"),
        ("no_serialized_cache", "has no runtime cache to keep"),
    ],
)
def test_without_a_runtime_cache_it_runs_and_frees_everything(
    rtx_bundle: Bundle,
    rtx: FakeTensorRT,
    cuda: FakeCuda,
    caplog: pytest.LogCaptureFixture,
    refused: str,
    told: str,
) -> None:
    caplog.set_level(logging.DEBUG, "structsam_export")
    setattr(rtx, refused, True)
    with decoder(rtx_bundle, "tensorrt-rtx") as runner:
        np.testing.assert_array_equal(runner.run(FEEDS)["iou_predictions"], EXPECTED)
    assert told in caplog.text
    assert not cuda.alive


def test_closing_does_not_hide_the_first_error(
    rtx_bundle: Bundle,
    rtx: FakeTensorRT,
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from structsam_export.runtimes.runtime_cache import RuntimeCache

    def fails(cache: RuntimeCache) -> None:
        raise TypeError("saving failed")

    monkeypatch.setattr(RuntimeCache, "save", fails)
    rtx.refuse_run = rtx.no_serialized_cache = True
    with (
        pytest.raises(RuntimeError, match="could not run .*: the run was refused"),
        decoder(rtx_bundle, "tensorrt-rtx") as runner,
    ):
        runner.run(FEEDS)
    assert not cuda.alive


def test_a_constructor_that_gets_nothing_says_why(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    trt.refuse_runtime = True
    with pytest.raises(BackendUnavailable, match=r"cannot make a Runtime: CUDA init.* error: 35"):
        decoder(bundle, backend).open()
    with pytest.raises(BackendUnavailable, match="cannot make a Builder: CUDA init"):
        build(bundle, backend, ["sm89"], force=True)
    assert not cuda.alive


def test_warnings_of_tensorrt_are_in_the_debug_log(
    bundle: Bundle, backend: str, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "structsam_export")
    with decoder(bundle, backend):
        assert f"{trt.__name__} warns: a planted warning" in caplog.messages


def test_an_engine_is_hashed_once(
    bundle: Bundle, backend: str, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.bundle import digest_note, files

    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return digest(path)

    digest = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", counted)
    engine = bundle.path / engine_file(backend, "decoder", "sm89")
    with decoder(bundle, backend):
        assert hashed == [engine]
    with decoder(bundle, backend):
        assert hashed == [engine] * 2, "a file that is younger than its clock's steps is not noted"
    monkeypatch.setattr(digest_note, "_SETTLED", -1e9)
    for _ in range(3):
        with decoder(bundle, backend):
            assert hashed == [engine] * 3
    other = engine.with_name("other")
    other.write_bytes(engine.read_bytes())
    shutil.copystat(engine, other)
    other.replace(engine)
    with decoder(bundle, backend):
        assert hashed == [engine] * 4, "another file of the same size and time"
    engine.write_bytes(b"dEcoder")
    with pytest.raises(UserError, match="was altered"):
        decoder(bundle, backend).open()
