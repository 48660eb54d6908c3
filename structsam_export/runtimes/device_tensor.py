"""An array that stays where a network computed it, so that the next network can read it there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np


class DeviceTensor(ABC):
    """An output of `Runner.run_on_device`, which a runner of the same backend takes as an input.

    It holds until the runner that made it runs again or is closed.

    Attributes:
        shape: its size in every dimension.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """Return it in host memory, perhaps the very memory: do not write to it.

        Raises:
            RuntimeError: its runner ran again or was closed.
        """

    def kept(self) -> DeviceTensor:
        """Return it in memory that later runs leave alone: itself where that is so already."""
        return self


class HostTensor(DeviceTensor):
    """Of a backend that computes in host memory: the array itself."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def numpy(self) -> np.ndarray:
        """Return the array."""
        return self._array


#: What an input may be, and all inputs by name.
Feed = np.ndarray | DeviceTensor
Feeds = dict[str, Feed]
