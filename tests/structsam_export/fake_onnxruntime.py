"""An `onnxruntime` with a CUDA provider, made of the real one for the CPU."""

from __future__ import annotations

from typing import Any

CUDA = "CUDAExecutionProvider"


class FakeSession:
    """A session on the CPU that says it is one on CUDA."""

    def __init__(self, module: FakeOnnxRuntime, file: str, options: Any, providers: list[Any]):
        module.opened.append({"options": options, "providers": providers, "file": file})
        self._module = module
        self._session = module.real.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )

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
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.cuda_starts = True
        self.missing: tuple[str, ...] = ()
        self.preloaded = 0
        self.opened: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        assert not self.opened, "libraries are loaded before the first session"
        self.preloaded += 1
        for name in self.missing:
            print(f"Failed to load {name}: no such file")

    def InferenceSession(self, file: str, options: Any, providers: list[Any]) -> FakeSession:
        return FakeSession(self, file, options, providers)
