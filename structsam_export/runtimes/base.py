"""The contract of a backend: say whether it runs here, open a part of a bundle, run it, close it.

A backend is one file with a `Backend` and a `Runner`, and one line in `runtimes/__init__.py`. The
checks of names, shapes and types are done here, once, for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec
from structsam_export.runtimes.device_tensor import DeviceTensor, Feed, Feeds, HostTensor

Arrays = dict[str, np.ndarray]


class BackendUnavailable(UserError):
    """The backend cannot run here; the message is the reason and what to install."""


@dataclass(frozen=True)
class RunOptions:
    """What a user may choose when a bundle is opened.

    Args:
        threads: CPU threads; None leaves the choice to the backend.
        checkpoint: weights for the torch backend (a bundle holds none for torch).
        target: which engine to use, for example `sm89`; None takes the one for this GPU.
        for_timing: the runner is to be timed: `device_ms` can tell, and TensorRT-RTX compiles a
            kernel when it is first used, instead of in the background while others stand in.
        keep_compiled: OpenVINO keeps what it compiled in the bundle, for the next process.
    """

    threads: int | None = None
    checkpoint: Path | None = None
    target: str | None = None
    for_timing: bool = False
    keep_compiled: bool = True


class Runner(ABC):
    """One opened network. Use as a context manager; `run` may be called many times."""

    def __init__(self, part: Part) -> None:
        self.part = part

    @abstractmethod
    def open(self) -> None:
        """Load the network and allocate what `run` needs."""

    @abstractmethod
    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        """Compute these outputs of the part, and fetch no others.

        Inputs are checked, of the declared type, and either C-contiguous arrays or tensors that
        `_takes` accepted.
        """

    def _run_on_device(
        self, feeds: Feeds, outputs: Sequence[TensorSpec]
    ) -> Mapping[str, DeviceTensor]:
        """Do what `_run` does, and leave the outputs on the device, complete."""
        return {name: HostTensor(array) for name, array in self._run(feeds, outputs).items()}

    def _device_ms(self, feeds: Feeds) -> float | None:
        """Do what `device_ms` says, with feeds as in `_run`."""
        return None

    def _takes(self, tensor: DeviceTensor) -> bool:
        """Whether `_run` can read this tensor where it is; else it is given an array."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Free everything. Safe to call twice."""

    def describe(self) -> dict[str, Any]:
        """Return facts about what runs (device, providers, engine file), ready for JSON."""
        return {}

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> Arrays:
        """Run the network on `feeds` (name -> array), and return name -> array.

        Args:
            feeds: arrays, or tensors of `run_on_device`.
            outputs: names among the part's `outputs` and `plan_outputs`, which alone are fetched;
                None means its `outputs`.

        Raises:
            UserError: a name, shape or type differs from the contract.
        """
        asked, (checked, bound) = self._asked(outputs), self._checked(feeds)
        found = self._run(checked, asked)
        self._check_outputs(found, asked, bound)
        return found

    def run_on_device(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None
    ) -> Mapping[str, DeviceTensor]:
        """Do what `run` does, and leave the outputs where they were computed.

        They are complete when this returns, and hold until this runner runs again or is closed.
        """
        asked, (checked, bound) = self._asked(outputs), self._checked(feeds)
        found = self._run_on_device(checked, asked)
        self._check_outputs(found, asked, bound)
        return found

    def device_ms(self, feeds: Mapping[str, Feed]) -> float | None:
        """Run once with inputs and outputs on the GPU; return the time between two CUDA events.

        Returns:
            Milliseconds; None where the CPU computes, or the runner was not opened `for_timing`.
        """
        return self._device_ms(self._checked(feeds)[0])

    def _checked(self, feeds: Mapping[str, Feed]) -> tuple[Feeds, dict[str, int]]:
        """Return the feeds as `_run` takes them, and the size of every dynamic dimension."""
        bound: dict[str, int] = {}
        checked: Feeds = {}
        wanted = {spec.name: spec for spec in self.part.inputs}
        if set(feeds) != set(wanted):
            raise UserError(f"inputs are {sorted(feeds)}, and should be {sorted(wanted)}")
        for name, spec in wanted.items():
            feed = feeds[name]
            if isinstance(feed, DeviceTensor) and not self._takes(feed):
                feed = feed.numpy()
            if not isinstance(feed, DeviceTensor):
                feed = np.ascontiguousarray(feed)
            if str(feed.dtype) != spec.dtype:
                raise UserError(f"input {name} is {feed.dtype}, and should be {spec.dtype}")
            if len(feed.shape) != len(spec.shape):
                raise UserError(f"input {name} has shape {feed.shape}, not {spec.shape}")
            for size, dim in zip(feed.shape, spec.shape, strict=True):
                self._check_dimension(name, size, dim, bound)
            checked[name] = feed
        return checked, bound

    @staticmethod
    def _check_outputs(
        found: Mapping[str, Feed], asked: Sequence[TensorSpec], bound: Mapping[str, int]
    ) -> None:
        if set(found) != {spec.name for spec in asked}:
            raise RuntimeError(f"outputs are {sorted(found)}, not {[s.name for s in asked]}")
        for spec in asked:
            value = found[spec.name]
            expected = tuple(bound[d] if isinstance(d, str) else d for d in spec.shape)
            if value.shape != expected or str(value.dtype) != spec.dtype:
                raise RuntimeError(
                    f"output {spec.name} is {value.dtype} of shape {value.shape}, and not "
                    f"{spec.dtype} of {expected}"
                )

    def _asked(self, names: Sequence[str] | None) -> tuple[TensorSpec, ...]:
        if names is None:
            return self.part.outputs
        known = {spec.name: spec for spec in self.part.all_outputs}
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"no output is named {unknown[0]!r}. There are: {', '.join(known)}")
        return tuple(known[name] for name in dict.fromkeys(names))

    def _check_dimension(self, name: str, size: int, dim: int | str, bound: dict[str, int]) -> None:
        if isinstance(dim, int):
            if size != dim:
                raise UserError(f"input {name} has a dimension of {size}, and should have {dim}")
            return
        low, _, high = self.part.profile[dim]
        if not low <= size <= high:
            raise UserError(f"{dim} is {size} in input {name}, and must be {low} to {high}")
        if bound.setdefault(dim, size) != size:
            raise UserError(f"{dim} is {size} in input {name}, and {bound[dim]} in another input")

    def __enter__(self) -> Runner:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Backend(ABC):
    """A way to run a bundle's networks."""

    name: str
    title: str
    needs_engine: ClassVar[bool] = False
    #: It rebuilds the model from weights, which a bundle does not hold.
    needs_weights: ClassVar[bool] = False

    @abstractmethod
    def why_unavailable(self) -> str | None:
        """Return None when this backend can run here, else the reason and what to install."""

    def on(self, device: str) -> Backend:
        """Return this backend on another device: what stands behind the colon of its name.

        Raises:
            UserError: it takes none.
        """
        raise UserError(f"backend {self.name} takes no device. Leave `:{device}` out")

    @abstractmethod
    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return an unopened runner.

        Raises:
            BackendUnavailable: this bundle cannot be run here by this backend.
        """
