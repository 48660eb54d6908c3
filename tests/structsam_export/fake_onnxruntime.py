"""An `onnxruntime` with a CUDA provider, made of the real one for the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.structsam_export.fake_cuda import FakeCuda

RUN_MS = 2.5
CUDA = "CUDAExecutionProvider"


class FakeValue:
    """A value that says it lies on the GPU."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def device_name(self) -> str:
        return "cuda"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class FakeBinding:
    def __init__(self, module: FakeOnnxRuntime, real: Any, on_cuda: bool) -> None:
        self.module, self.real, self.on_cuda = module, real, on_cuda
        self.devices: list[str] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert isinstance(value, FakeValue) == self.on_cuda, "a value of another device"
        self.real.bind_ortvalue_input(name, value.real if self.on_cuda else value)

    def bind_output(self, name: str, device: str) -> None:
        self.devices.append(device)
        self.module.bound.append((name, device))
        self.real.bind_output(name)

    def get_outputs(self) -> list[Any]:
        pairs = zip(self.devices, self.real.get_outputs(), strict=True)
        return [FakeValue(value) if device == "cuda" else value for device, value in pairs]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class FakeSession:
    """A session on the CPU that says it is one on CUDA."""

    def __init__(self, module: FakeOnnxRuntime, file: str, options: Any, providers: list[Any]):
        module.opened.append({"options": options, "providers": providers, "file": file})
        self._module = module
        self._on_cuda = providers[0] != "CPUExecutionProvider"
        self._session = module.real.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._module, self._session.io_binding(), self._on_cuda)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self._session.run_with_iobinding(binding.real)
        if self._module.cuda is not None:
            self._module.cuda.clock_ms += RUN_MS

    def get_providers(self) -> list[str]:
        return [*([CUDA] if self._module.cuda_starts else []), "CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class FakeOnnxRuntime:
    """What `import onnxruntime` gives.

    Attributes:
        cuda_starts: False falls back to the CPU, as ONNX Runtime does without a word.
        missing: libraries that `preload_dlls` does not find; it prints them, as the real one does.
        opened: what sessions were made with.
        bound: (output, device) of every output that was asked for.
        cuda: whose clock a run moves.
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.cuda_starts = True
        self.missing: tuple[str, ...] = ()
        self.preloaded = 0
        self.opened: list[dict[str, Any]] = []
        self.bound: list[tuple[str, str]] = []
        self.cuda: FakeCuda | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @property
    def OrtValue(self) -> SimpleNamespace:
        def from_numpy(array: np.ndarray, device: str, device_id: int) -> FakeValue:
            assert (device, device_id) == ("cuda", 0)
            if self.cuda is not None:
                self.cuda.clock_ms += 10
            return FakeValue(self.real.OrtValue.ortvalue_from_numpy(array))

        return SimpleNamespace(ortvalue_from_numpy=from_numpy)

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        assert not self.opened, "libraries are loaded before the first session"
        self.preloaded += 1
        for name in self.missing:
            print(f"Failed to load {name}: no such file")

    def InferenceSession(self, file: str, options: Any, providers: list[Any]) -> FakeSession:
        return FakeSession(self, file, options, providers)
