"""The contract of a backend: say whether it runs here, open a part of a bundle, run it, close it.

A backend is one file with a `Backend` and a `Runner`, and one line in `runtimes/__init__.py`. The
checks of names, shapes and types are done here, once, for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec

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
    """

    threads: int | None = None
    checkpoint: Path | None = None
    target: str | None = None


class Runner(ABC):
    """One opened network. Use as a context manager; `run` may be called many times."""

    def __init__(self, part: Part) -> None:
        self.part = part

    @abstractmethod
    def open(self) -> None:
        """Load the network and allocate what `run` needs."""

    @abstractmethod
    def _run(self, feeds: Arrays, outputs: Sequence[TensorSpec]) -> Arrays:
        """Compute these outputs of the part, and fetch no others.

        Inputs are checked, C-contiguous and of the declared type.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything. Safe to call twice."""

    def describe(self) -> dict[str, Any]:
        """Return facts about what runs (device, providers, engine file), ready for JSON."""
        return {}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """Run the network on `feeds` (name -> array), and return name -> array.

        Args:
            outputs: names among the part's `outputs` and `plan_outputs`, which alone are fetched;
                None means its `outputs`.

        Raises:
            UserError: a name, shape or type differs from the contract.
        """
        asked = self._asked(outputs)
        bound: dict[str, int] = {}
        checked: Arrays = {}
        wanted = {spec.name: spec for spec in self.part.inputs}
        if set(feeds) != set(wanted):
            raise UserError(f"inputs are {sorted(feeds)}, and should be {sorted(wanted)}")
        for name, spec in wanted.items():
            array = np.ascontiguousarray(feeds[name])
            if str(array.dtype) != spec.dtype:
                raise UserError(f"input {name} is {array.dtype}, and should be {spec.dtype}")
            if len(array.shape) != len(spec.shape):
                raise UserError(f"input {name} has shape {array.shape}, not {spec.shape}")
            for size, dim in zip(array.shape, spec.shape, strict=True):
                self._check_dimension(name, size, dim, bound)
            checked[name] = array
        found = self._run(checked, asked)
        if set(found) != {spec.name for spec in asked}:
            raise RuntimeError(f"outputs are {sorted(found)}, not {[s.name for s in asked]}")
        for spec in asked:
            array = found[spec.name]
            expected = tuple(bound[d] if isinstance(d, str) else d for d in spec.shape)
            if array.shape != expected or str(array.dtype) != spec.dtype:
                raise RuntimeError(
                    f"output {spec.name} is {array.dtype} of shape {array.shape}, and not "
                    f"{spec.dtype} of {expected}"
                )
        return found

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

    @abstractmethod
    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return an unopened runner.

        Raises:
            BackendUnavailable: this bundle cannot be run here by this backend.
        """
