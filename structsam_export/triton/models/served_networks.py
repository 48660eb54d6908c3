"""Backend `triton`: the networks of a bundle as models of the server that this code runs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec
from structsam_export.runtimes.base import Arrays, Backend, Runner, RunOptions
from structsam_export.runtimes.device_tensor import Feeds
from structsam_export.triton.models.requests import run_model


class ServedNetworks(Backend):
    """Runs the encoder and the decoder by requests to the same server.

    Args:
        models: the name of each network's model.
    """

    name = "triton"
    title = "models of the same Triton server"

    def __init__(self, models: Mapping[PartName, str]) -> None:
        self._models = models

    def why_unavailable(self) -> str | None:
        """Return None: it is made where it runs."""
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return what sends the requests."""
        return ServedNetwork(bundle.part(part), self._models[part])


class ServedNetwork(Runner):
    """One network; arrays go to it and come back in host memory."""

    def __init__(self, part: Part, model: str) -> None:
        super().__init__(part)
        self._model = model

    def open(self) -> None:
        """Nothing to do: the server opened it."""

    def close(self) -> None:
        """Nothing to do: the server closes it."""

    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        arrays = cast(Mapping[str, np.ndarray], feeds)  # no tensor is taken: all are arrays
        return run_model(self._model, arrays, [spec.name for spec in outputs])

    def describe(self) -> dict[str, Any]:
        """Return the model's name."""
        return {"model": self._model}
