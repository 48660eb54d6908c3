"""A pretended TensorRT whose engines compute what the ONNX files of a real bundle compute."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName, TensorSpec
from tests.structsam_export.engine_bundle import put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeContext, FakeEngine, FakeTensorRT


class OnnxContext(FakeContext):
    """Runs the engine's ONNX on the addresses and shapes that it was given."""

    engine: OnnxEngine

    def _compute(self) -> None:
        part, outputs = self.engine.part, [spec.name for spec in self.engine.part.all_outputs]
        feeds = {}
        for spec in part.inputs:
            dynamic = any(isinstance(side, str) for side in spec.shape)
            shape = self.shapes[spec.name] if dynamic else spec.shape
            feeds[spec.name] = self._at(spec, shape).copy()
        found = dict(zip(outputs, self.engine.session.run(outputs, feeds), strict=True))
        for name, value in found.items():
            (spec,) = [spec for spec in part.all_outputs if spec.name == name]
            self._at(spec, value.shape)[:] = self.engine.trt.planted.get(name, value)

    def _at(self, spec: TensorSpec, shape: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[spec.name])
        return np.frombuffer(memory, spec.dtype).reshape(shape)


class OnnxEngine(FakeEngine):
    """Has the tensors of a part, with their types."""

    context = OnnxContext
    trt: OnnxTensorRT

    def __init__(self, trt: OnnxTensorRT, bundle: Bundle, name: PartName) -> None:
        import onnxruntime

        self.part = bundle.part(name)
        inputs, outputs = self.part.inputs, self.part.all_outputs
        super().__init__(trt, [s.name for s in inputs], [s.name for s in outputs])
        self.types = {spec.name: spec.dtype for spec in (*inputs, *outputs)}
        self.session = onnxruntime.InferenceSession(
            str(bundle.onnx_path(name)), providers=["CPUExecutionProvider"]
        )

    def get_tensor_dtype(self, name: str) -> str:
        return self.types[name]


class OnnxTensorRT(FakeTensorRT):
    """`planted`: outputs that engines give instead of what they compute."""

    def __init__(self, cuda: FakeCuda, rtx: bool, bundle: Bundle) -> None:
        super().__init__(cuda, rtx)
        self.bundle = bundle
        self.planted: dict[str, np.ndarray] = {}

    def read_engine(self, data: Any) -> OnnxEngine:
        return OnnxEngine(self, self.bundle, "encoder" if data[:1] == b"e" else "decoder")

    def nptype(self, dtype: str) -> type:
        return np.dtype(dtype).type


def install_engines(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, backend: str) -> OnnxTensorRT:
    """Pretend a GPU with this backend, and engines of the bundle as its files are now."""
    cuda, rtx = FakeCuda(), backend == "tensorrt-rtx"
    fake = OnnxTensorRT(cuda, rtx, bundle)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", fake)  # type: ignore[arg-type]
    put_engines(bundle, backend)
    return fake
