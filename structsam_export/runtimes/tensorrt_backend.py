"""TensorRT and TensorRT-RTX: one implementation, and the Python module is an argument.

They differ in where an engine fits (TensorRT: the GPU that built it; RTX: every GPU of an
architecture), in the compilation that RTX finishes on first use and keeps in a cache beside the
engine, and in who captures the CUDA graphs (RTX does it itself).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from structsam_export.bundle.engine_entries import (
    BuildSettings,
    engine_status,
    find_entry,
    fingerprint,
)
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.runtimes.base import Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.cuda_memory import Gpu, open_cuda
from structsam_export.runtimes.tensorrt_module import Flavour, ahead_of_time_targets, load_module
from structsam_export.runtimes.tensorrt_runner import TensorRTRunner


class TensorRTBackend(Backend):
    """Runs the engines that `structsam-export build` put into a bundle."""

    needs_engine: ClassVar[bool] = True

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.name = flavour.name
        self.title = flavour.title

    def why_unavailable(self) -> str | None:
        """Return None when the module, the driver and a GPU that it supports are here."""
        try:
            self._module_and_gpu()
        except BackendUnavailable as error:
            return str(error)
        return None

    def _module_and_gpu(self) -> tuple[Any, Gpu]:
        trt = load_module(self.flavour)
        gpu = open_cuda(self.flavour.extra).gpu()
        if self.flavour.ahead_of_time and gpu.target not in ahead_of_time_targets(trt):
            raise BackendUnavailable(
                f"{self.title} {trt.__version__} does not support {gpu.name} ({gpu.target}), only "
                f"{' '.join(ahead_of_time_targets(trt))}; use the backend tensorrt"
            )
        return trt, gpu

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner of the engine for this GPU, or for `options.target`."""
        trt, gpu = self._module_and_gpu()
        target = options.target or gpu.target
        entry = find_entry(bundle, self.name, part, target)
        settings = BuildSettings.of(entry) if entry else BuildSettings()
        tuned_on = None if self.flavour.ahead_of_time else gpu.name
        wanted = fingerprint(bundle, self.name, part, target, trt.__version__, tuned_on, settings)
        ok, reason = engine_status(bundle, self.name, part, target, wanted, digest=False)
        fix = _rebuild(bundle.path, self.name, target)
        if entry is None or not ok:
            raise BackendUnavailable(f"{reason}; {fix}")
        return TensorRTRunner(
            bundle.part(part), self.flavour, bundle.path, entry, fix, eager=options.for_timing
        )


def _rebuild(folder: Path, backend: str, target: str) -> str:
    command = f"structsam-export build {folder} --backend {backend} --target {target}"
    return f"build it with `{command}`"
