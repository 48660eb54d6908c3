"""Execution contexts of one engine: what they share, and how each flavour makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.runtimes.cuda_memory import Cuda, CudaError
from structsam_export.runtimes.runtime_cache import RuntimeCache
from structsam_export.runtimes.tensorrt_module import Flavour, logger_of


class Contexts:
    """Makes the contexts of an engine. They run one after the other, never at the same time.

    On TensorRT they share one block of scratch memory, so that a context for every CUDA graph costs
    little. TensorRT-RTX captures graphs itself and needs one context; what it compiles is kept.

    Args:
        eager: TensorRT-RTX compiles kernels for new shapes at once. By default it does so in the
            background and runs slower ones until then.

    Attributes:
        specialisation: `eager` or `lazy` on TensorRT-RTX; None on TensorRT, which compiles nothing.
    """

    def __init__(
        self, trt: Any, flavour: Flavour, engine: Any, cuda: Cuda, file: Path, eager: bool
    ) -> None:
        self._trt, self._flavour, self._engine = trt, flavour, engine
        self._cuda, self._file = cuda, file
        self._scratch: int | None = None
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        self.specialisation: str | None = None
        self.captures_graphs = hasattr(trt, "CudaGraphStrategy")
        if self.captures_graphs:
            self._config = engine.create_runtime_config()
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if eager:
                self._config.dynamic_shapes_kernel_specialization_strategy = (
                    trt.DynamicShapesKernelSpecializationStrategy.EAGER
                )
            self.specialisation = "eager" if eager else "lazy"
            self._cache = RuntimeCache(self._config, file)

    def create(self) -> Any:
        """Return a new context.

        Raises:
            UserError: TensorRT cannot make one, or the GPU's memory does not suffice.
        """
        if self.captures_graphs:
            return self._checked(self._engine.create_execution_context(self._config))
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._checked(self._engine.create_execution_context(strategy))
        size = self._engine.device_memory_size_v2
        if size:
            context.set_device_memory(self._shared_scratch(size), size)
        return context

    def _checked(self, context: Any) -> Any:
        if context is None:
            raise self._cannot_start(logger_of(self._trt).take())
        return context

    def _shared_scratch(self, size: int) -> int:
        if self._scratch is None:
            try:
                self._scratch = self._cuda.allocate(size)
            except CudaError as error:
                if error.status != CudaError.OUT_OF_MEMORY:
                    raise
                raise self._cannot_start(f"it needs {size >> 20} MiB of scratch memory") from None
        return self._scratch

    def _cannot_start(self, reason: str) -> UserError:
        return UserError(
            f"{self._flavour.title} cannot start {self._file}: {reason}; the GPU has "
            f"{self._cuda.free_memory() >> 20} MiB free. Close other programs that use it"
        )

    def save_cache(self) -> None:
        """Keep what TensorRT-RTX compiled since it was read; nothing on TensorRT."""
        if self._cache is not None:
            self._cache.save()

    def close(self) -> None:
        """Free what the contexts share; they must be gone. Safe to call twice."""
        self._cache = self._config = self._engine = None
        if self._scratch is not None:
            self._cuda.free(self._scratch)
            self._scratch = None
