"""Triton model: single photos in, batches of the encoder's fixed size out, filled up with zeros.

An encoder of fixed batch B cannot be batched by the server itself: that wants a first dimension
that varies. This model can, and hands on what waits together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from structsam_export.triton.models.requests import (
    array_of,
    parameters,
    response_of,
    run_model,
)


def filled(arrays: list[np.ndarray], size: int) -> np.ndarray:
    """Put arrays [b, ...] one after the other, and zeros behind them up to [size, ...]."""
    joined = np.concatenate(arrays)
    rest = np.zeros((size - len(joined), *joined.shape[1:]), joined.dtype)
    return np.concatenate([joined, rest])


class TritonPythonModel:
    """What Triton's Python backend calls, with up to B photos in all requests together."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read which model has the batch, its size, and the tensors' names."""
        told = parameters(args)
        self._network, self._size = told["network"], int(told["batch"])
        self._inputs = told["inputs"].split(",")
        self._outputs = told["outputs"].split(",")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch."""
        given = [[array_of(request, name) for request in requests] for name in self._inputs]
        feeds = {
            name: filled([array for array in arrays if array is not None], self._size)
            for name, arrays in zip(self._inputs, given, strict=True)
        }
        found = run_model(self._network, feeds, self._outputs)
        counts = [len(array) for array in given[0] if array is not None]
        ends = np.cumsum(counts)
        return [
            response_of({name: array[end - count : end] for name, array in found.items()})
            for count, end in zip(counts, ends, strict=True)
        ]
