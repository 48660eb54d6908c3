"""A TensorRT on top of `FakeCuda`: it computes, answers and refuses as the real one does.

What returns a bool there returns a bool here, what may be None may be told to be None, and a
constructor that gets nothing raises pybind11's `TypeError`. Reasons go to the logger.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.structsam_export.fake_cuda import FakeCuda

__all__ = ["FakeCuda", "FakeTensorRT", "Validity"]
RUN_MS = 1.5
SCRATCH = 4096


class Validity(IntEnum):
    INVALID, VALID, SUBOPTIMAL = 0, 1, 2


class FakeContext:
    """Computes what the small networks compute, on the addresses that it was given.

    The state at the time of a capture is what a graph replays; a context that was told other shapes
    or addresses since makes the replay an error, because it is undefined in TensorRT.
    """

    def __init__(self, trt: FakeTensorRT, engine: FakeEngine) -> None:
        self.trt, self.engine = trt, engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, 64, 64)}
        self.scratch: tuple[int, int] | None = None
        self.has_run_with: Any = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.names or name in self.trt.refuse_address:
            self.trt.error(f"no address for {name}")
            return False
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.names:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch = (memory, size)

    @property
    def _state(self) -> Any:
        return dict(self.addresses), dict(self.shapes), self.scratch

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.trt
        if trt.cuda.capturing and trt.refuse_capture:
            return False
        if trt.refuse_run or set(self.addresses) != set(self.engine.names):
            trt.error("the run was refused")
            return False
        if not trt.rtx and self.scratch is None:
            trt.error("no device memory")
            return False
        state = self._state
        if trt.cuda.capturing:
            assert self.has_run_with == state, "a context runs once before it is captured"
        self.has_run_with = state

        def work() -> None:
            assert self._state == state, "the context was changed after the capture"
            self._compute()
            trt.cuda.clock_ms += RUN_MS

        trt.cuda.put(work)
        return True

    def _compute(self) -> None:
        if "image" in self.addresses:
            total = self._array("image", self.shapes["image"]).sum()
            self._array("image_embeddings", (1, 8, 16, 16))[:] = total
            return
        coords = self._array("point_coords", self.shapes["point_coords"])
        labels = self._array("point_labels", self.shapes["point_labels"])
        sums = coords.sum((1, 2)) + labels.sum(1)
        if "low_res_masks" in self.addresses:
            sums += self._array("image_embeddings", (1, 8, 16, 16)).mean()
            mask = self._array("mask_input", self.shapes["mask_input"])
            has = self._array("has_mask_input", self.shapes["has_mask_input"])
            masks = self._array("low_res_masks", (len(coords), 4, *mask.shape[2:]))
            masks[:] = (sums + has)[:, None, None, None] + mask
        self._array("iou_predictions", (len(coords), 4))[:] = sums[:, None]

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        flat = (ctypes.c_float * size).from_address(self.addresses[name])
        return np.ctypeslib.as_array(flat).reshape(shape)


class FakeRuntimeCache:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize(self, data: bytes) -> bool:
        self.trt.compiled = data
        return True

    def serialize(self) -> bytes | None:
        if self.trt.no_serialized_cache:
            return None
        self.trt.compiled = self.trt.compiled or b"compiled kernels"
        return self.trt.compiled


class FakeRuntimeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.cache: FakeRuntimeCache | None = None

    def create_runtime_cache(self) -> FakeRuntimeCache | None:
        return None if self.trt.no_runtime_cache else FakeRuntimeCache(self.trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        if self.trt.refuse_cache:
            return False
        self.cache = cache
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        if "strategy" in name:
            setattr(self.trt, name, value)
        super().__setattr__(name, value)


#: First byte of an engine file -> inputs and outputs.
_TENSORS = {
    b"e": (["image"], ["image_embeddings"]),
    b"d": (["point_coords", "point_labels"], ["iou_predictions"]),
    b"s": (
        ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"],
        ["low_res_masks", "iou_predictions"],
    ),
}


class FakeEngine:
    device_memory_size_v2 = SCRATCH
    context = FakeContext

    def __init__(self, trt: FakeTensorRT, inputs: list[str], outputs: list[str]) -> None:
        self.trt, self.outputs = trt, outputs
        self.names = inputs + outputs
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> int:
        return 2 if name in self.outputs else 1

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self.trt)

    def create_execution_context(self, how: Any) -> FakeContext | None:
        """`how` is a runtime config for RTX, and an allocation strategy for TensorRT."""
        assert isinstance(how, FakeRuntimeConfig) == self.trt.rtx
        if self.trt.contexts_left == 0:
            self.trt.error("no memory for a context")
            return None
        self.trt.contexts_left -= 1
        return self.context(self.trt, self)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        if trt.rtx:
            self.get_engine_validity = lambda data: trt.verdict

    def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
        return self.trt.read_engine(data)


class FakeTensorRT:
    """The part of `tensorrt` that a runner uses, or of `tensorrt_rtx` with `rtx=True`.

    Attributes:
        contexts_left: how many contexts can still be made; -1 for any number.
        refuse_address: tensors for which `set_tensor_address` returns False.
    """

    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "SM75": 1, "SM89": 2})
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, cuda: FakeCuda, rtx: bool = False) -> None:
        self.cuda, self.rtx = cuda, rtx
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.__version__ = "1.7.1" if rtx else "10.3.0"
        self.refuse_run = self.refuse_capture = self.refuse_runtime = False
        self.refuse_cache = self.no_runtime_cache = self.no_serialized_cache = False
        self.refuse_address: tuple[str, ...] = ()
        self.contexts_left = -1
        self.verdict: tuple[Validity, int] = (Validity.VALID, 0)
        self.compiled = b""
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.logger: Any = None
        if rtx:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
            self.EngineValidity = Validity
            self.EngineInvalidityDiagnostics = SimpleNamespace(
                __members__={"VERSION_MISMATCH": 1, "OLD_CUDA_DRIVER": 4}
            )

    def Runtime(self, logger: Any) -> FakeRuntime:
        self.logger = logger
        logger.log(self.ILogger.WARNING, "a planted\nwarning")
        if self.refuse_runtime:
            self.error("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRuntime(self)

    Builder = Runtime

    def read_engine(self, data: Any) -> FakeEngine | None:
        return FakeEngine(self, *_TENSORS[data[:1]]) if data[:1] in _TENSORS else None

    def error(self, text: str) -> None:
        self.logger.log(self.ILogger.ERROR, text)

    def nptype(self, dtype: str) -> type:
        return np.float32
