"""torch.compile: how fast PyTorch itself makes the same network; on CUDA with CUDA graphs."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.graph.precisions import is_quantized
from structsam_export.runtimes.base import BackendUnavailable, RunOptions
from structsam_export.runtimes.torch_backend import (
    NO_INT8,
    TorchBackend,
    TorchRunner,
    load_merged_sam,
)

if TYPE_CHECKING:
    from torch import Tensor

_COMPILERS = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")


class TorchCompileRunner(TorchRunner):
    """The same modules as `TorchRunner`'s, compiled at the first call: on CUDA for minutes."""

    def open(self) -> None:
        """Load the weights; the compilation comes with the first call."""
        super().open()
        self._compiled: dict[bool, Any] = {}

    def _function(self, with_plans: bool) -> Any:
        import torch

        if with_plans not in self._compiled:
            mode = "max-autotune" if self._device == "cuda" else "default"
            self._compiled[with_plans] = torch.compile(super()._function(with_plans), mode=mode)
        return self._compiled[with_plans]

    def _kept(self, value: Tensor) -> Tensor:
        """A copy on the device: the next call of any compiled module may use a graph's memory."""
        return value.clone() if self._device == "cuda" else value

    def close(self) -> None:
        """Drop the module and what was compiled."""
        self._compiled = {}
        super().close()


class TorchCompileBackend(TorchBackend):
    """PyTorch with torch.compile, on the CPU or CUDA."""

    name = "torch-compile"
    title = "PyTorch, torch.compile"

    def why_unavailable(self) -> str | None:
        """Return None when PyTorch and a C++ compiler are installed."""
        if reason := super().why_unavailable():
            return reason
        if not any(shutil.which(name) for name in _COMPILERS):
            return f"torch.compile needs a C++ compiler ({' or '.join(_COMPILERS)}); install one"
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> TorchCompileRunner:
        """Return a runner of the rebuilt model. A prompt-aware encoder is refused."""
        self.require_weights(bundle, options)
        if is_quantized(bundle.precision):
            raise BackendUnavailable(NO_INT8)
        if bundle.takes_box:
            raise BackendUnavailable("torch-compile takes no prompt-aware encoder; use torch")
        load = partial(load_merged_sam, bundle, options)
        return TorchCompileRunner(bundle.part(part), part, load, bundle.precision, options.threads)
