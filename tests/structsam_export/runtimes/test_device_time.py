"""Time between CUDA events: the network's alone, with inputs and outputs on the device."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import pytest

from structsam_export.bench.row import serve
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import BACKENDS, RunOptions
from tests.structsam_export import fake_onnxruntime, fake_tensorrt
from tests.structsam_export.engine_bundle import FEEDS
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_onnxruntime import FakeOnnxRuntime
from tests.structsam_export.fake_tensorrt import FakeTensorRT

FOR_TIMING = RunOptions(for_timing=True)
IMAGE = {"image": np.ones((1, 3, 64, 64), np.float32)}


def test_an_engine_is_timed_without_copies(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    for part, feeds in (("encoder", IMAGE), ("decoder", FEEDS)):
        with BACKENDS[backend].runner(bundle, part, FOR_TIMING) as runner:
            first = runner.device_ms(feeds)
            assert first is not None and first >= fake_tensorrt.RUN_MS  # may capture a graph
            for _ in range(3):
                runner.run(feeds)
            launched = cuda.calls.count("cudaGraphLaunch")
            assert runner.device_ms(feeds) == fake_tensorrt.RUN_MS
            assert cuda.calls.count("cudaGraphLaunch") == launched + (not trt.rtx)
    assert not cuda.alive


def test_a_failing_run_destroys_its_events(
    bundle: Bundle, backend: str, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    with BACKENDS[backend].runner(bundle, "decoder", FOR_TIMING) as runner:
        held = len(cuda.alive)
        trt.refuse_run = True
        with pytest.raises(RuntimeError, match="could not run"):
            runner.device_ms(FEEDS)
        assert len(cuda.alive) == held


@pytest.mark.parametrize("for_timing", [False, True])
def test_rtx_compiles_eagerly_only_to_be_timed(
    bundle: Bundle, backend: str, trt: FakeTensorRT, for_timing: bool
) -> None:
    with BACKENDS[backend].runner(bundle, "decoder", RunOptions(for_timing=for_timing)) as runner:
        described = runner.describe().get("specialisation")
    strategy = trt.dynamic_shapes_kernel_specialization_strategy
    if not trt.rtx:
        assert described is None and strategy is None
    else:
        assert described == ("eager" if for_timing else "lazy")
        assert strategy == ("eager" if for_timing else None)


def test_onnxruntime_is_timed_on_a_stream_of_ours(
    bundle: Bundle, ort: FakeOnnxRuntime, cuda: FakeCuda
) -> None:
    ort.cuda = cuda
    with BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", FOR_TIMING) as runner:
        (stream,) = cuda.alive
        assert ort.opened[0]["providers"][0][1]["user_compute_stream"] == str(stream)
        assert runner.device_ms(IMAGE) == fake_onnxruntime.RUN_MS
        assert ort.bound == [("image_embeddings", "cuda")]
    assert not cuda.alive
    with BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", RunOptions()) as runner:
        assert "user_compute_stream" not in ort.opened[1]["providers"][0][1]
        assert runner.device_ms(IMAGE) is None


def test_without_cuda_bindings_onnxruntime_runs_untimed(
    bundle: Bundle, ort: FakeOnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # type: ignore[arg-type]
    with BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", FOR_TIMING) as runner:
        assert runner.device_ms(IMAGE) is None
        assert runner.run(IMAGE)["image_embeddings"].any()


def test_a_session_that_cannot_start_leaves_no_stream(
    bundle: Bundle, ort: FakeOnnxRuntime, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        assert cuda.alive
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", FOR_TIMING),
    ):
        pass
    assert not cuda.alive


def test_with_a_driver_too_old_for_cuda_bindings_onnxruntime_runs_untimed(
    bundle: Bundle, ort: FakeOnnxRuntime, cuda: FakeCuda
) -> None:
    cuda.fail["cudaStreamCreateWithFlags"] = 0  # onnxruntime has a CUDA of its own
    with BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", FOR_TIMING) as runner:
        assert runner.device_ms(IMAGE) is None
        assert runner.run(IMAGE)["image_embeddings"].any()
        assert "planted error" in runner.describe()["no_device_time"]
    assert "cudaStreamDestroy" not in cuda.calls


def test_the_cpu_has_no_device_time(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    with BACKENDS["onnxruntime"].runner(bundle, "encoder", FOR_TIMING) as runner:
        assert runner.device_ms(IMAGE) is None


def row(bundle: Bundle, backend: str, *commands: str) -> list[dict[str, Any]]:
    """What the process of a benchmark's row answers."""
    answers = io.StringIO()
    request = {"bundle": str(bundle.path), "backend": backend, "part": "decoder"}
    serve(request, commands, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_row_answers_with_both_times(bundle: Bundle, backend: str, trt: FakeTensorRT) -> None:
    ready, first, warm_up, second, end = row(bundle, backend, "run", "warm up", "run", "end")
    assert ready == {"ready": True} and {"ms", "device_ms"} == set(first)
    assert warm_up == {"warm_up": {"runs": 10, "difference": 0.0, "steady": True}}
    assert second["device_ms"] == fake_tensorrt.RUN_MS and second["ms"] > 0
    assert end["runtime"].get("specialisation") == ("eager" if trt.rtx else None)


def test_a_row_on_the_cpu_answers_with_wall_time_alone(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    _, first, warm_up, end = row(bundle, "onnxruntime", "run", "warm up", "end")
    assert first["ms"] > 0 and first["device_ms"] is None
    assert warm_up == {"warm_up": None} and "runtime" in end
