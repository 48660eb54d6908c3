"""A CUDA and a TensorRT made of host memory: they compute, and count what was not given back."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeCuda:
    """Host memory behind the names of `cuda.bindings.runtime`, and a count of what is alive."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, devices: int = 1, driver: int = 12060, status: int = 0) -> None:
        self.devices, self.driver, self.status = devices, driver, status
        self.name, self.major, self.minor = b"Pretended GPU", 8, 9
        self.alive: dict[int, Any] = {}
        self.fail: dict[str, int] = {}  # call -> how many calls still succeed
        self.calls: list[str] = []
        self.capturing = False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "cudaGetErrorString": (0, b"a planted error"),
            "cudaGetLastError": (0,),
            "cudaGetDevice": (0, 0),
            "cudaGetDeviceProperties": (0, self),
            "cudaDriverGetVersion": (0, self.driver),
            "cudaRuntimeGetVersion": (0, 13000),
            "cudaMemGetInfo": (0, 5 << 20, 9 << 20),
            "cudaGetDeviceCount": (self.status, self.devices),
            "cudaStreamSynchronize": (0,),
            "cudaGraphLaunch": (0,),
        }

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                if self.fail[name] == 0:
                    return (2, None)
                self.fail[name] -= 1
            if name in ("cudaMalloc", "cudaHostAlloc"):
                block = ctypes.create_string_buffer(arguments[0])
                self.alive[ctypes.addressof(block)] = block
                return 0, ctypes.addressof(block)
            if name in (
                "cudaStreamCreateWithFlags",
                "cudaStreamEndCapture",
                "cudaGraphInstantiate",
            ):
                self.capturing = False
                handle = 7_000_000 + len(self.calls)
                self.alive[handle] = name
                return 0, handle
            if name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaGraphDestroy"):
                del self.alive[int(arguments[0])]
                return (0,)
            if name == "cudaGraphExecDestroy":
                del self.alive[arguments[0]]
                return (0,)
            if name == "cudaStreamBeginCapture":
                self.capturing = True
                return (0,)
            if name == "cudaMemcpyAsync":
                ctypes.memmove(*arguments[:3])
                return (0,)
            return answers[name]

        return call


class Validity(IntEnum):
    INVALID, VALID, SUBOPTIMAL = 0, 1, 2


class FakeContext:
    """Computes what the small decoder computes, on the addresses that it was given."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, 64, 64)}

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        flat = (ctypes.c_float * size).from_address(self.addresses[name])
        return np.ctypeslib.as_array(flat).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        if self.trt.cuda.capturing and self.trt.refuse_capture:
            return False
        if "image" in self.addresses:
            self._array("image_embeddings", (1, 8, 16, 16))[:] = self._array(
                "image", self.shapes["image"]
            ).sum()
        else:
            coords = self._array("point_coords", self.shapes["point_coords"])
            labels = self._array("point_labels", self.shapes["point_labels"])
            sums = coords.sum((1, 2)) + labels.sum(1)
            self._array("iou_predictions", (len(coords), 4))[:] = sums[:, None]
        return not self.trt.refuse_run


class FakeTensorRT:
    """The part of `tensorrt` that a runner uses, or of `tensorrt_rtx` with `rtx=True`."""

    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "SM75": 1, "SM89": 2})

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 2

    def __init__(self, cuda: FakeCuda, rtx: bool = False) -> None:
        self.cuda, self.rtx = cuda, rtx
        self.__version__ = "1.7.1" if rtx else "10.3.0"
        self.refuse_run = self.refuse_capture = self.refuse_context = False
        self.verdict: tuple[Validity, int] = (Validity.VALID, 0)
        self.compiled = b""
        self.cuda_graph_strategy: Any = None
        if rtx:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
            self.EngineValidity = Validity
            self.EngineInvalidityDiagnostics = SimpleNamespace(
                __members__={"VERSION_MISMATCH": 1, "OLD_CUDA_DRIVER": 4}
            )
            self.get_engine_validity = lambda data: self.verdict

    def Runtime(self, logger: Any) -> FakeTensorRT:
        return self

    def deserialize_cuda_engine(self, data: Any) -> Any:
        names = {b"e": ["image", "image_embeddings"]}.get(
            data[:1], ["point_coords", "point_labels", "iou_predictions"]
        )
        if data[:1] == b"?":
            return None
        outputs = ("image_embeddings", "iou_predictions")
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: 2 if name in outputs else 1,
            get_tensor_dtype=lambda name: "float",
            create_runtime_config=lambda: self,
            create_execution_context=lambda config=None: (
                None if self.refuse_context else FakeContext(self)
            ),
        )

    def nptype(self, dtype: str) -> type:
        return np.float32

    def create_runtime_cache(self) -> FakeTensorRT:
        return self

    def set_runtime_cache(self, cache: Any) -> bool:
        return True

    def deserialize(self, data: bytes) -> bool:
        self.compiled = data
        return True

    def serialize(self) -> bytes:
        self.compiled = self.compiled or b"compiled kernels"
        return self.compiled
