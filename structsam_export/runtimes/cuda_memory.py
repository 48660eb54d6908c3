"""The few CUDA runtime calls that running an engine takes, and the memory that belongs to a run.

Nothing else in the package touches `cuda.bindings`, so a test may put a pretended runtime in its
place and see every allocation and every release.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.runtimes.base import BackendUnavailable

_OUT_OF_MEMORY = 2
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100
_NO_DRIVER = "no NVIDIA driver is installed here; install one, or choose another backend"


class CudaError(RuntimeError):
    """A CUDA call failed; `status` is the number of its `cudaError_t`."""

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
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes of pinned host memory."""
        return int(self._call("cudaHostAlloc", size, 0))

    def free_host(self, address: int) -> None:
        """Give pinned host memory back."""
        self._call("cudaFreeHost", address)

    def copy_to_device(self, device: int, host: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes from pinned host memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, size, kind, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes to pinned host memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, size, kind, stream)

    def create_stream(self) -> Any:
        """Return a new stream, independent of the default one; `int(stream)` is its handle."""
        return self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until everything on `stream` is done."""
        self._call("cudaStreamSynchronize", stream)

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
            self._cuda.cudaStreamEndCapture(stream)
            self._cuda.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._call("cudaGraphExecDestroy", graph)


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


class DeviceBuffers:
    """For every named tensor device memory and pinned host memory, allocated once at full size."""

    def __init__(self, cuda: Cuda, sizes: Mapping[str, int]) -> None:
        """Allocate.

        Args:
            sizes: bytes at the largest shape, per tensor.

        Raises:
            UserError: the memory does not suffice; whatever was allocated is freed again.
        """
        self._cuda = cuda
        self._sizes = dict(sizes)
        self._device: dict[str, int] = {}
        self._host: dict[str, int] = {}
        try:
            for name, size in sizes.items():
                self._device[name] = cuda.allocate(size)
                self._host[name] = cuda.allocate_host(size)
        except CudaError as error:
            self.close()
            if error.status != _OUT_OF_MEMORY:
                raise
            raise UserError(
                f"the GPU is out of memory: inputs and outputs take {sum(sizes.values()) >> 20} "
                f"MiB on device and host, and the device has {cuda.free_memory() >> 20} MiB free. "
                "Close other programs that use the GPU"
            ) from None

    def address(self, name: str) -> int:
        """Return the device address of a tensor; it never changes."""
        return self._device[name]

    def upload(self, name: str, array: np.ndarray, stream: Any) -> None:
        """Start copying a C-contiguous array to the device."""
        self._staging(name, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self._cuda.copy_to_device(self._device[name], self._host[name], array.nbytes, stream)

    def download(self, name: str, size: int, stream: Any) -> None:
        """Start copying the first `size` bytes of a tensor to the host; `read` them after it."""
        self._cuda.copy_to_host(self._host[name], self._device[name], size, stream)

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return a copy of what `download` brought; wait for the stream first."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self._staging(name, size).view(dtype).reshape(shape).copy()

    def _staging(self, name: str, size: int) -> np.ndarray:
        if size > self._sizes[name]:
            raise RuntimeError(f"{name} needs {size} bytes, and has {self._sizes[name]}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._host[name]))

    def close(self) -> None:
        """Free all memory. Safe to call twice."""
        while self._device:
            self._cuda.free(self._device.popitem()[1])
        while self._host:
            self._cuda.free_host(self._host.popitem()[1])


def _no_gpu() -> str:
    return "no NVIDIA GPU is visible here; check `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
