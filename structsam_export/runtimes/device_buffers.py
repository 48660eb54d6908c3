"""Device memory of a network's inputs and outputs, and the pinned host memory beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.runtimes.cuda_memory import Cuda, CudaError
from structsam_export.runtimes.device_tensor import DeviceTensor, HostTensor
from structsam_export.runtimes.kept_tensor import KeptTensor


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
        self._run = 0
        try:
            for name, size in sizes.items():
                self._device[name] = cuda.allocate(size)
                self._host[name] = cuda.allocate_host(size)
        except CudaError as error:
            self.close()
            if error.status != CudaError.OUT_OF_MEMORY:
                raise
            raise UserError(
                f"the GPU is out of memory: inputs and outputs take {sum(sizes.values()) >> 20} "
                f"MiB on device and host, and the device has {cuda.free_memory() >> 20} MiB free. "
                "Close other programs that use the GPU"
            ) from None

    def address(self, name: str) -> int:
        """Return the device address of a tensor; it never changes."""
        return self._device[name]

    def start_run(self) -> None:
        """Outputs are about to be overwritten: tensors of earlier runs no longer hold."""
        self._run += 1

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, stream: Any
    ) -> BufferTensor:
        """Return what the latest run wrote, as it lies on the device."""
        return BufferTensor(self, name, shape, dtype, stream)

    def holds(self, run: int) -> bool:
        """Whether the memory still has what that run wrote."""
        return bool(self._device) and run == self._run

    @property
    def latest_run(self) -> int:
        """The number of the latest run."""
        return self._run

    def upload(self, name: str, array: np.ndarray, stream: Any) -> None:
        """Start copying a C-contiguous array to the device."""
        self._staging(name, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self._cuda.copy_to_device(self._device[name], self._host[name], array.nbytes, stream)

    def take(self, name: str, tensor: KeptTensor, stream: Any) -> None:
        """Start copying a kept tensor into the memory of `name`, whose address never changes."""
        self._cuda.copy_on_device(self._device[name], tensor.address, tensor.nbytes, stream)

    def keep(self, tensor: BufferTensor, stream: Any) -> DeviceTensor:
        """Return a copy that later runs leave alone: on the device, or the host where it is full.

        Raises:
            RuntimeError: as `BufferTensor.address`.
        """
        try:
            return KeptTensor(self._cuda, tensor.address, tensor.shape, tensor.dtype, stream)
        except CudaError as error:
            if error.status != CudaError.OUT_OF_MEMORY:
                raise
            return HostTensor(tensor.numpy())

    def download(self, name: str, size: int, stream: Any) -> None:
        """Start copying the first `size` bytes of a tensor to the host; `read` them after it."""
        self._cuda.copy_to_host(self._host[name], self._device[name], size, stream)

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return a copy of what `download` brought; wait for the stream first."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self._staging(name, size).view(dtype).reshape(shape).copy()

    def fetch(self, name: str, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> np.ndarray:
        """Return a copy of a tensor, and wait for it."""
        self.download(name, int(np.prod(shape)) * dtype.itemsize, stream)
        self._cuda.synchronize(stream)
        return self.read(name, shape, dtype)

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


class BufferTensor(DeviceTensor):
    """An output in the buffers of its runner."""

    def __init__(
        self,
        buffers: DeviceBuffers,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        stream: Any,
    ) -> None:
        self._buffers, self._name, self._stream = buffers, name, stream
        self._run = buffers.latest_run
        self.shape, self.dtype = shape, dtype

    @property
    def address(self) -> int:
        """Where it lies on the device.

        Raises:
            RuntimeError: its runner ran again or was closed.
        """
        if not self._buffers.holds(self._run):
            raise RuntimeError(f"{self._name} is gone: its network ran again or was closed")
        return self._buffers.address(self._name)

    def numpy(self) -> np.ndarray:
        """Return a copy in host memory; raises as `address`."""
        assert self.address
        return self._buffers.fetch(self._name, self.shape, self.dtype, self._stream)

    def kept(self) -> DeviceTensor:
        """Return a copy: the buffers belong to the next run. See `DeviceBuffers.keep`."""
        return self._buffers.keep(self, self._stream)
