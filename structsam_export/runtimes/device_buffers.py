"""Device memory of a network's inputs and outputs, and the pinned host memory beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.runtimes.cuda_memory import Cuda, CudaError


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
