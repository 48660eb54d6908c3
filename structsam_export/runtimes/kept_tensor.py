"""A network's output in device memory of its own, for as long as somebody holds it."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from structsam_export.runtimes.cuda_memory import Cuda
from structsam_export.runtimes.device_tensor import DeviceTensor


class KeptTensor(DeviceTensor):
    """A copy of what lies at an address of the device; freed with its last reference.

    It outlives the runner that made it, and may be used and dropped in any thread.

    Args:
        source: address to copy from.
        stream: on which that was written; it is waited for.

    Raises:
        CudaError: no memory is left on the device, or the copy failed. Nothing is kept then.
    """

    def __init__(
        self, cuda: Cuda, source: int, shape: tuple[int, ...], dtype: np.dtype, stream: Any
    ) -> None:
        self._cuda = cuda
        self.shape, self.dtype = shape, dtype
        self.address = cuda.allocate(self.nbytes)
        self._free = weakref.finalize(self, cuda.free, self.address)
        self._free.atexit = False  # the driver frees what a process leaves
        try:
            cuda.copy_on_device(self.address, source, self.nbytes, stream)
            cuda.synchronize(stream)
        except BaseException:
            self._free()
            raise

    def numpy(self) -> np.ndarray:
        """Return a copy in host memory."""
        stream, host = self._cuda.create_stream(), None
        try:
            host = self._cuda.allocate_host(self.nbytes)
            self._cuda.copy_to_host(host, self.address, self.nbytes, stream)
            self._cuda.synchronize(stream)
            staging = (ctypes.c_uint8 * self.nbytes).from_address(host)
            return np.ctypeslib.as_array(staging).view(self.dtype).reshape(self.shape).copy()
        finally:
            if host is not None:
                self._cuda.free_host(host)
            self._cuda.destroy_stream(stream)
