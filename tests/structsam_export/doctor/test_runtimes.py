"""Every runtime is really tried: with what is here, and with a pretended GPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from structsam_export.bundle.engine_entries import engine_file, fingerprint, record_engine
from structsam_export.bundle.folder import Bundle
from structsam_export.doctor import runtimes
from structsam_export.doctor.process import ask
from structsam_export.doctor.runtimes import try_runtime
from structsam_export.doctor.tiny_bundle import ANSWER, FEEDS, GRAPH, PART, POOLING, in_torch, wrong
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeContext, FakeEngine, FakeTensorRT


def graph() -> Any:
    """The bundled graph; after a change: `onnx.save(graph(), GRAPH)`."""
    helper = pytest.importorskip("onnx").helper
    from onnx import TensorProto, numpy_helper

    net = helper.make_graph(
        [
            helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Softmax", ["half"], ["shares"], axis=-1),
            helper.make_node("MatMul", ["shares", "pooling"], ["pooled_half"]),
            helper.make_node("Cast", ["pooled_half"], ["pooled"], to=TensorProto.FLOAT),
            helper.make_node("TopK", ["shares", "count"], ["values", "places"], axis=-1),
            helper.make_node("Cast", ["places"], ["largest"], to=TensorProto.INT32),
        ],
        "self_test",
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("largest", TensorProto.INT32, [1, 2]),
        ],
        [
            numpy_helper.from_array(np.array(POOLING, np.float16), "pooling"),
            numpy_helper.from_array(np.array([2], np.int64), "count"),
        ],
    )
    return helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_the_bundled_graph_is_the_one_written_here() -> None:
    assert GRAPH.read_bytes() == graph().SerializeToString()


def test_the_known_answer_follows_from_the_inputs() -> None:
    shares = np.array([[1, 2, 3, 4]]) / 10
    np.testing.assert_allclose(np.exp(FEEDS["logits"]) / 10, shares, rtol=1e-6)
    np.testing.assert_allclose(ANSWER["pooled"], shares @ np.array(POOLING))
    assert ANSWER["largest"].tolist() == [[3, 2]]
    assert wrong(ANSWER) is None
    assert wrong({**ANSWER, "largest": ANSWER["largest"][:, ::-1]}) == (
        "largest is [[2, 3]], and should be [[3, 2]]"
    )


def test_onnx_runtime_is_really_run() -> None:
    pytest.importorskip("onnxruntime")
    facts = try_runtime("onnxruntime")
    assert facts["works"] and facts["self_test"] == "passed" and facts["reason"] is None
    assert facts["runtime"]["providers"] == ["CPUExecutionProvider"] and facts["run_ms"] > 0


def test_torch_finds_the_same_answer() -> None:
    pytest.importorskip("torch")
    network, runtime = in_torch(compiled=False)
    assert wrong(network(FEEDS)) is None and runtime["device"] in ("cpu", "cuda")
    facts = try_runtime("torch")
    assert facts["works"] and facts["runtime"] == runtime


@pytest.mark.parametrize("device", ["torch", "onnxruntime"])
def test_a_wrong_answer_is_no_working_runtime(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(device)
    monkeypatch.setitem(FEEDS, "logits", FEEDS["logits"][:, ::-1].copy())
    facts = try_runtime(device)
    assert not facts["works"] and facts["self_test"] == "failed"
    assert facts["reason"] == "pooled is [[6.0, 4.0]], and should be [[4.0, 6.0]]"


def test_an_engine_is_really_built_without_a_gpu() -> None:
    pytest.importorskip("tensorrt_rtx")
    facts = try_runtime("tensorrt-rtx")
    assert facts["build"].startswith("built for sm"), facts
    if not facts["works"]:
        assert facts["self_test"] == "not run" and "no NVIDIA" in facts["reason"]


# With a pretended GPU


class TinyContext(FakeContext):
    """Computes the tiny graph on the addresses that it was given."""

    def _compute(self) -> None:
        for spec in PART.outputs:
            array, address = self.trt.answer[spec.name], self.addresses[spec.name]
            ctypes.memmove(address, array.tobytes(), array.nbytes)


class TinyEngine(FakeEngine):
    context = TinyContext

    def get_tensor_dtype(self, name: str) -> str:
        return next(s.dtype for s in (*PART.inputs, *PART.outputs) if s.name == name)


class TinyTensorRT(FakeTensorRT):
    answer = ANSWER

    def read_engine(self, data: Any) -> TinyEngine:
        inputs, outputs = ([spec.name for spec in specs] for specs in (PART.inputs, PART.outputs))
        return TinyEngine(self, inputs, outputs)

    def nptype(self, dtype: str) -> type:
        return np.dtype(dtype).type


def pretended_build(
    bundle: Bundle, name: str, targets: Sequence[str], parts: Sequence[str]
) -> None:
    assert list(parts) == ["encoder"] and list(targets) == ["sm89"]
    version, gpu = ("1.7.1", None) if name == "tensorrt-rtx" else ("10.3.0", "Pretended GPU")
    file = bundle.path / engine_file(name, "encoder", "sm89")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"tiny")
    wanted = fingerprint(bundle, name, "encoder", "sm89", version, gpu)
    record_engine(bundle, name, "encoder", "sm89", wanted, 1.0, {})


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def trt(name: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> TinyTensorRT:
    fake = TinyTensorRT(cuda, rtx=name == "tensorrt-rtx")
    module = "tensorrt_rtx" if fake.rtx else "tensorrt"
    monkeypatch.setitem(sys.modules, module, fake)  # type: ignore[arg-type]
    monkeypatch.setattr(runtimes, "build", pretended_build)
    return fake


def test_tensorrt_on_a_gpu(name: str, trt: TinyTensorRT, cuda: FakeCuda) -> None:
    facts = try_runtime(name)
    assert facts["works"] and facts["self_test"] == "passed", facts
    assert facts["build"] == "built for sm89" and facts["runtime"]["gpu"] == "Pretended GPU"
    assert not cuda.alive


def test_an_engine_that_computes_nonsense(name: str, trt: TinyTensorRT) -> None:
    trt.answer = {**ANSWER, "pooled": ANSWER["pooled"] * 2}
    facts = try_runtime(name)
    assert not facts["works"] and facts["self_test"] == "failed"
    assert facts["reason"].startswith("pooled is [[8.0, 12.0]]")


def test_an_engine_that_cannot_be_built(
    name: str, trt: TinyTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("a planted error")

    monkeypatch.setattr(runtimes, "build", fails)
    facts = try_runtime(name)
    assert facts["reason"] == "it built no engine: RuntimeError: a planted error"
    assert facts["self_test"] == "not run" and not facts["works"]


def test_cuda_itself(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("cuda") == {
        "gpu": "Pretended GPU", "target": "sm89", "driver_supports": "12.6", "free_mib": 5,
    }  # fmt: skip
    cuda.devices = 0
    assert "no NVIDIA GPU is visible" in ask("cuda")["problem"]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # type: ignore[arg-type]
    assert "cuda-bindings cannot be loaded" in ask("cuda")["problem"]


def test_a_broken_install_is_a_reason(name: str, trt: TinyTensorRT) -> None:
    trt.Runtime = None  # type: ignore[assignment]
    facts = try_runtime(name)
    assert not facts["works"] and facts["reason"].startswith("TypeError: ")
