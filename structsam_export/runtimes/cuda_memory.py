"""The few CUDA runtime calls that running an engine takes.

Nothing else in the package touches `cuda.bindings`, so a test may put a pretended runtime in its
place and see every allocation and every release.

NVIDIA's `cuda.core` was considered (1.2.2, 2026-11-26) and not taken. It would replace the methods
for streams, copies, events and graphs, about half of this file; what tells a user which driver is
too old, the free memory and the status of an error would stay on `cuda.bindings`. It has wheels for
Jetson's Python 3.10 on aarch64, but cannot be imported beside cuda-bindings 12.8 or older.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from structsam_export.runtimes.base import BackendUnavailable

_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100
_NO_DRIVER = "no NVIDIA driver is installed here; install one, or choose another backend"

_log = logging.getLogger("structsam_export")


class CudaError(RuntimeError):
    """A CUDA call failed; `status` is the number of its `cudaError_t`."""

    OUT_OF_MEMORY: ClassVar[int] = 2

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call} failed with error {status}: {text}")
        self.status = status
        self.text = text


@dataclass(frozen=True)
class Gpu:
    """The current CUDA device; `target` is its architecture, for example `sm89`."""

    name: str
    target: str


class Cuda:
    """The CUDA runtime as methods that raise `CudaError` instead of returning a status."""

    def __init__(self, bindings: Any) -> None:
        self._cuda = bindings

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            self._cuda.cudaGetLastError()  # else the next call of somebody else reports this one
            _, text = self._cuda.cudaGetErrorString(status)
            raise CudaError(name, int(status), text.decode())
        return values[0] if values else None

    def _release(self, name: str, handle: Any) -> None:
        """Give something back. A failure is only logged: more is to be freed after this.

        After a failed kernel every call fails; the error of the kernel is the one that counts.
        """
        try:
            self._call(name, handle)
        except CudaError as error:
            _log.debug("%s", error)

    def gpu(self) -> Gpu:
        """Return the current device.

        Raises:
            BackendUnavailable: no device, no driver, or a driver older than the bindings.
        """
        try:
            if self._call("cudaGetDeviceCount") == 0:
                raise BackendUnavailable(_no_gpu())
            properties = self._call("cudaGetDeviceProperties", self._call("cudaGetDevice"))
        except CudaError as error:
            raise BackendUnavailable(self._why_no_device(error)) from None
        except RuntimeError as error:  # cuda-bindings 12.6 to 12.8 find no libcuda
            raise BackendUnavailable(f"{_NO_DRIVER} ({error})") from None
        return Gpu(properties.name.decode(), f"sm{properties.major}{properties.minor}")

    def _why_no_device(self, error: CudaError) -> str:
        if error.status == _NO_DEVICE:
            return _no_gpu()
        if error.status != _INSUFFICIENT_DRIVER:
            return f"CUDA cannot start: {error.text}. Check the driver with `nvidia-smi`"
        driver = self._call("cudaDriverGetVersion")
        if driver == 0:
            return _NO_DRIVER
        needed = self._call("cudaRuntimeGetVersion")
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)}, and cuda-bindings need "
            f"{_version(needed)}; update the driver, or "
            f"`pip install 'cuda-bindings<{driver // 1000 + 1}'`"
        )

    def driver_version(self) -> str:
        """Return the newest CUDA that the driver supports, such as `12.6`."""
        return _version(self._call("cudaDriverGetVersion"))

    def free_memory(self) -> int:
        """Return the bytes of device memory that are free."""
        status, free, _ = self._cuda.cudaMemGetInfo()
        return int(free) if int(status) == 0 else 0

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._release("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes of pinned host memory."""
        return int(self._call("cudaHostAlloc", size, 0))

    def free_host(self, address: int) -> None:
        """Give pinned host memory back."""
        self._release("cudaFreeHost", address)

    def copy_to_device(self, device: int, host: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes from pinned host memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, size, kind, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes to pinned host memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, size, kind, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes from one place of device memory to another."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def create_stream(self) -> Any:
        """Return a new stream, independent of the default one; `int(stream)` is its handle."""
        return self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._release("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until everything on `stream` is done."""
        self._call("cudaStreamSynchronize", stream)

    def elapsed_ms(self, stream: Any, work: Callable[[], None]) -> float:
        """Return the milliseconds that pass on `stream` while it does what `work` puts there."""
        events: list[Any] = []
        try:
            for _ in range(2):
                events.append(self._call("cudaEventCreate"))
            start, end = events
            self._call("cudaEventRecord", start, stream)
            work()
            self._call("cudaEventRecord", end, stream)
            self._call("cudaEventSynchronize", end)
            return float(self._call("cudaEventElapsedTime", start, end))
        finally:
            for event in events:
                self._release("cudaEventDestroy", event)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Record what `work` puts on `stream`, without running it, and return a graph to launch.

        Raises:
            CudaError: the work cannot be captured. `stream` is usable again afterwards.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            status, graph = self._cuda.cudaStreamEndCapture(stream)
            if int(status) == 0:  # what was captured before `work` failed; else there is none
                self._release("cudaGraphDestroy", graph)
            self._cuda.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._release("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._release("cudaGraphExecDestroy", graph)


def open_cuda(extra: str) -> Cuda:
    """Return the CUDA runtime of `cuda.bindings`.

    Args:
        extra: the extra of structsam that installs it, named in the message.

    Raises:
        BackendUnavailable: the bindings are not installed.
    """
    try:
        return Cuda(import_module("cuda.bindings.runtime"))
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"cuda-bindings cannot be loaded ({error}); install it with "
            f"`pip install 'structsam[{extra}]'`"
        ) from None


def _no_gpu() -> str:
    return "no NVIDIA GPU is visible here; check `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
