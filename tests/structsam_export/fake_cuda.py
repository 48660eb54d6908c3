"""A CUDA made of host memory, behind the names and answers of `cuda.bindings.runtime`.

Every call answers with a status first, as the real ones do, and counts what was not given back.
Work runs at once, or is recorded while a stream is captured. `clock_ms` is the device's time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

OUT_OF_MEMORY, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 2, 900, 901
COPY_MS = 10.0


class FakeCuda:
    """See the module.

    Attributes:
        fail: call -> how many calls still succeed; all later ones fail.
        fail_once: call -> how many calls still succeed before the one that fails.
        alive: what was allocated or created, and not yet freed or destroyed.
        wrong_releases: calls that gave back what was not there, or not any more.
        copies: (1 to the device, 2 to the host or 3 on the device, bytes) of every copy.
    """

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, devices: int = 1, driver: int = 12060, status: int = 0) -> None:
        self.devices, self.driver, self.status = devices, driver, status
        self.name, self.major, self.minor = b"Pretended GPU", 8, 9
        self.alive: dict[int, Any] = {}
        self.fail: dict[str, int] = {}
        self.fail_once: dict[str, int] = {}
        self.calls: list[str] = []
        self.wrong_releases: list[str] = []
        self.copies: list[tuple[int, int]] = []
        self.clock_ms = 0.0
        self.recorded: list[Callable[[], None]] | None = None
        self.invalidated = False

    @property
    def capturing(self) -> bool:
        return self.recorded is not None

    def put(self, work: Callable[[], None]) -> None:
        """Run what belongs on the stream, or record it."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if self._fails(name):
                return (OUT_OF_MEMORY, *[None] * self._values(name))
            return self._answer(name, arguments)

        return call

    def _fails(self, name: str) -> bool:
        if name in self.fail:
            self.fail[name] -= 1
            return self.fail[name] < 0
        if name in self.fail_once:
            self.fail_once[name] -= 1
            if self.fail_once[name] < 0:
                del self.fail_once[name]
                return True
        return False

    @staticmethod
    def _values(name: str) -> int:
        """How many values follow the status; they are None when a call fails."""
        if name == "cudaMemGetInfo":
            return 2
        silent = ("Free", "Destroy", "Synchronize", "Record", "Launch", "Begin", "Async")
        return 0 if any(word in name for word in silent) else 1

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        answers: dict[str, tuple[Any, ...]] = {
            "cudaGetErrorString": (0, b"a planted error"),
            "cudaGetLastError": (0,),
            "cudaGetDevice": (0, 0),
            "cudaGetDeviceProperties": (0, self),
            "cudaDriverGetVersion": (0, self.driver),
            "cudaRuntimeGetVersion": (0, 13000),
            "cudaMemGetInfo": (0, 5 << 20, 9 << 20),
            "cudaGetDeviceCount": (self.status, self.devices),
        }
        if name in answers:
            return answers[name]
        if name in ("cudaMalloc", "cudaHostAlloc"):
            if self.capturing:
                self.invalidated = True
                return CAPTURE_UNSUPPORTED, None
            block = ctypes.create_string_buffer(arguments[0])
            return 0, self._keep(block, ctypes.addressof(block))
        if name in ("cudaStreamCreateWithFlags", "cudaEventCreate"):
            return 0, self._keep(SimpleNamespace(ms=None))
        if name in ("cudaStreamSynchronize", "cudaEventSynchronize"):
            self.invalidated |= self.capturing
            return (CAPTURE_UNSUPPORTED if self.capturing else 0,)
        if name == "cudaEventRecord":
            event = self.alive[int(arguments[0])]
            self.put(lambda: setattr(event, "ms", self.clock_ms))
            return (0,)
        if name == "cudaEventElapsedTime":
            start, end = (self.alive[int(event)].ms for event in arguments)
            return 0, end - start
        if name == "cudaMemcpyAsync":
            self.copies.append((arguments[3], arguments[2]))
            self.put(lambda: self._copy(*arguments[:3]))
            return (0,)
        if name in _RELEASES:  # a wrong or second one is a KeyError, which a finalizer swallows
            if int(arguments[0]) not in self.alive:
                self.wrong_releases.append(name)
            del self.alive[int(arguments[0])]
            return (0,)
        return self._graph_answer(name, arguments)

    def _graph_answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "cudaStreamBeginCapture":
            self.recorded, self.invalidated = [], False
            return (0,)
        if name == "cudaStreamEndCapture":
            recorded, self.recorded = self.recorded, None
            if self.invalidated:
                return CAPTURE_INVALIDATED, None
            return 0, self._keep(recorded)
        if name == "cudaGraphInstantiate":
            return 0, self._keep(self.alive[int(arguments[0])])
        if name == "cudaGraphLaunch":
            for work in self.alive[int(arguments[0])]:
                work()
            return (0,)
        raise AttributeError(f"cuda.bindings.runtime has no {name} in this fake")

    def _keep(self, thing: Any, handle: int | None = None) -> int:
        handle = handle or 7_000_000 + len(self.calls)
        self.alive[handle] = thing
        return handle

    def _copy(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)
        self.clock_ms += COPY_MS


_RELEASES = (
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
)
