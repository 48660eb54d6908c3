"""CUDA graphs of the decoder, one for every (P, K) that comes again; RTX captures its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import BACKENDS, RunOptions
from structsam_export.runtimes.base import Runner
from structsam_export.runtimes.cuda_graphs import CAPACITY
from tests.structsam_export.engine_bundle import install, put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeTensorRT
from tests.structsam_export.small_bundle import make_bundle


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> FakeTensorRT:
    return install(monkeypatch, cuda, rtx=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "bundle")
    put_engines(bundle, "tensorrt")
    return bundle


def decode(runner: Runner, prompts: int, points: int = 2) -> None:
    """Run with these counts, and compare with what the decoder is known to compute."""
    rng = np.random.default_rng(prompts)
    coords = rng.integers(0, 9, (prompts, points, 2)).astype(np.float32)
    found = runner.run({"point_coords": coords, "point_labels": np.ones(coords.shape[:2], "f4")})
    expected = coords.sum((1, 2)) + points
    np.testing.assert_array_equal(found["iou_predictions"], np.repeat(expected[:, None], 4, 1))


def counts(cuda: FakeCuda) -> tuple[int, int]:
    return cuda.calls.count("cudaStreamBeginCapture"), cuda.calls.count("cudaGraphLaunch")


def test_shapes_that_come_again_get_graphs(
    bundle: Bundle, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    with BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions()) as runner:
        for prompts, points, captured, launched in (
            (3, 2, 0, 0),
            (1, 2, 0, 0),
            (3, 2, 1, 0),
            (3, 2, 1, 1),
            (3, 4, 1, 1),
            (1, 2, 2, 1),
            (3, 2, 2, 2),  # after other shapes: the context of its graph was left alone
            (1, 2, 2, 3),
            (3, 4, 3, 3),
            (3, 4, 3, 4),
        ):
            decode(runner, prompts, points)
            assert counts(cuda) == (captured, launched)
        assert runner.describe()["cuda_graph"] == "captured for shapes that come again, 3 so far"
    assert not cuda.alive


def test_the_least_recently_used_graph_makes_room(
    bundle: Bundle, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    with BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions()) as runner:
        for prompts in range(1, CAPACITY + 1):
            decode(runner, prompts)
            decode(runner, prompts)
        decode(runner, 1)  # now 2 is the oldest
        held = len(cuda.alive)
        for _ in range(2):
            decode(runner, CAPACITY + 1)
        assert len(cuda.alive) == held, "one graph came, another went"
        assert counts(cuda) == (CAPACITY + 1, 1)
        decode(runner, 1)
        decode(runner, CAPACITY + 1)
        assert counts(cuda) == (CAPACITY + 1, 3)
        decode(runner, 2)
        assert counts(cuda) == (CAPACITY + 1, 3), "2 has no graph any more"
    assert not cuda.alive


def test_many_shapes_that_come_once_leave_the_graphs_alone(
    bundle: Bundle, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    with BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions()) as runner:
        decode(runner, 3)
        decode(runner, 3)
        for prompts in range(4, 40):
            decode(runner, prompts)
        decode(runner, 3)
        assert counts(cuda) == (1, 1)


def test_without_memory_for_another_context_it_runs_without_graphs(
    bundle: Bundle, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    trt.contexts_left = 1
    with BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions()) as runner:
        for _ in range(3):
            decode(runner, 3)
        assert counts(cuda) == (0, 0)
        assert "not used: TensorRT cannot start" in runner.describe()["cuda_graph"]
    assert not cuda.alive


def test_contexts_share_their_scratch_memory(
    bundle: Bundle, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    with BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions()) as runner:
        opened = cuda.calls.count("cudaMalloc")
        for prompts in (1, 2, 3) * 2:
            decode(runner, prompts)
        assert counts(cuda)[0] == 3 and cuda.calls.count("cudaMalloc") == opened
    cuda.fail = {"cudaMalloc": 3}
    runner = BACKENDS["tensorrt"].runner(bundle, "decoder", RunOptions())
    with pytest.raises(UserError, match=r"cannot start .*scratch memory; the GPU has 5 MiB free"):
        runner.open()
    assert not cuda.alive
