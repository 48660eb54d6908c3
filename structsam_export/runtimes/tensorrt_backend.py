"""TensorRT and TensorRT-RTX: one implementation, and the Python module is an argument.

They differ in where an engine fits (TensorRT: the GPU that built it; RTX: every GPU of an
architecture), in the compilation that RTX finishes on first use and keeps in a cache beside the
engine, and in who captures the CUDA graph (RTX does it itself).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.engine_entries import (
    BuildSettings,
    engine_status,
    find_entry,
    fingerprint,
)
from structsam_export.bundle.files import inside
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import EngineEntry, Part, PartName, TensorSpec
from structsam_export.runtimes.base import Arrays, Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.cuda_memory import Cuda, CudaError, DeviceBuffers, Gpu, open_cuda
from structsam_export.runtimes.tensorrt_module import (
    Flavour,
    ahead_of_time_targets,
    load_module,
    logger_of,
)

RUNTIME_CACHE_SUFFIX = ".runtime-cache"


class TensorRTRunner(Runner):
    """A deserialized engine with its buffers, stream and, where shapes are static, CUDA graph."""

    def __init__(self, part: Part, flavour: Flavour, folder: Path, entry: EngineEntry) -> None:
        super().__init__(part)
        self.flavour = flavour
        self.folder = folder
        self.entry = entry
        self.file = inside(folder, entry.file)
        self._dynamic = bool(part.profile)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._cache: Any = None
        self._cache_on_disk = b""
        self._has_run = False
        self._cuda: Cuda | None = None
        self._buffers: DeviceBuffers | None = None
        self._stream: Any = None
        self._graph: Any = None
        self._graph_note = "not used: shapes are dynamic"
        self._gpu: Gpu | None = None
        self._device_memory_mib: float | None = None

    def open(self) -> None:
        """Check and deserialize the engine, and allocate buffers of the largest shape.

        Raises:
            BackendUnavailable: the engine cannot be used by this TensorRT on this GPU.
            UserError: the file was altered, or the GPU's memory does not suffice.
        """
        trt = load_module(self.flavour)
        self._cuda = open_cuda(self.flavour.extra)
        self._gpu = self._cuda.gpu()
        if damage := self.entry.damage(self.folder):
            raise UserError(f"{damage}. Build the engine again with `structsam-export build`")
        free = self._cuda.free_memory()
        try:
            self._engine = self._deserialize(trt)
            self._check_tensors(trt)
            self._context = self._create_context(trt)
            self._stream = self._cuda.create_stream()
            specs = (*self.part.inputs, *self.part.all_outputs)
            largest = {name: sizes[2] for name, sizes in self.part.profile.items()}
            sizes = {spec.name: _size(spec, largest) for spec in specs}
            self._buffers = DeviceBuffers(self._cuda, sizes)
            for spec in specs:
                self._context.set_tensor_address(spec.name, self._buffers.address(spec.name))
            self._device_memory_mib = round((free - self._cuda.free_memory()) / 2**20, 1)
        except BaseException:
            self.close()
            raise

    def _deserialize(self, trt: Any) -> Any:
        logger = logger_of(trt)
        logger.errors.clear()
        self._runtime = runtime = trt.Runtime(logger)
        with (
            self.file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if hasattr(runtime, "get_engine_validity"):
                verdict, flags = runtime.get_engine_validity(data)
                if verdict == trt.EngineValidity.INVALID:
                    known = trt.EngineInvalidityDiagnostics.__members__.items()
                    reasons = [name for name, bit in known if int(bit) & flags]
                    raise BackendUnavailable(
                        f"{self.file} does not fit here ({', '.join(reasons) or logger.take()}); "
                        f"{self._rebuild}"
                    )
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendUnavailable(
                f"{self.flavour.title} {trt.__version__} cannot load {self.file}: "
                f"{logger.take()}; {self._rebuild}"
            )
        return engine

    def _check_tensors(self, trt: Any) -> None:
        engine = self._engine
        found = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            found[name] = (is_input, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name)
        wanted = {spec.name: (True, spec.dtype) for spec in self.part.inputs}
        wanted |= {spec.name: (False, spec.dtype) for spec in self.part.all_outputs}
        if found != wanted:
            raise BackendUnavailable(
                f"{self.file} has the tensors {sorted(found)}, and should have {sorted(wanted)} "
                f"of the manifest's types; {self._rebuild}"
            )

    @property
    def _rebuild(self) -> str:
        return _rebuild(self.folder, self.entry.backend, self.entry.target)

    def _create_context(self, trt: Any) -> Any:
        if hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._graph_note = "captured by TensorRT-RTX"
            self._cache = config.create_runtime_cache()
            self._load_runtime_cache()
            config.set_runtime_cache(self._cache)
            context = self._engine.create_execution_context(config)
        else:
            if not self._dynamic:
                self._graph_note = "pending: captured after the first run"
            context = self._engine.create_execution_context()
        if context is None:
            assert self._cuda is not None
            raise UserError(
                f"{self.flavour.title} cannot start {self.file}: {logger_of(trt).take()}; the GPU "
                f"has {self._cuda.free_memory() >> 20} MiB free. Close other programs that use it"
            )
        return context

    @property
    def _cache_file(self) -> Path:
        return self.file.with_name(self.file.name + RUNTIME_CACHE_SUFFIX)

    def _load_runtime_cache(self) -> None:
        try:
            data = self._cache_file.read_bytes()
        except OSError:
            return
        if data and self._cache.deserialize(data):  # False: written on another GPU or driver
            self._cache_on_disk = data

    def _save_runtime_cache(self) -> None:
        data = b"" if self._cache is None else bytes(memoryview(self._cache.serialize()))
        if data not in (b"", self._cache_on_disk):
            self._cache_on_disk = data
            with suppress(UserError):  # a read-only bundle works too: it compiles again next time
                atomic.write_bytes(self._cache_file, data)

    def _run(self, feeds: Arrays, outputs: Sequence[TensorSpec]) -> Arrays:
        assert self._cuda is not None and self._buffers is not None, "open() comes first"
        bound: dict[str, int] = {}
        for spec in self.part.inputs:
            array = feeds[spec.name]
            bound |= {
                d: n for d, n in zip(spec.shape, array.shape, strict=True) if d in _dims(spec)
            }
            if _dims(spec) and not self._context.set_input_shape(spec.name, array.shape):
                raise RuntimeError(f"{self.file} refuses {spec.name} of shape {array.shape}")
            self._buffers.upload(spec.name, array, self._stream)
        self._enqueue(self._cuda)
        for spec in outputs:
            self._buffers.download(spec.name, _size(spec, bound), self._stream)
        self._cuda.synchronize(self._stream)
        found = {
            spec.name: self._buffers.read(spec.name, _shape(spec, bound), np.dtype(spec.dtype))
            for spec in outputs
        }
        if not self._has_run:  # a server may be killed before it closes anything
            self._has_run = True
            self._save_runtime_cache()
        return found

    def _enqueue(self, cuda: Cuda) -> None:
        if self._graph is not None:
            cuda.launch(self._graph, self._stream)
            return
        self._execute()
        if self._graph_note.startswith("pending"):
            cuda.synchronize(self._stream)
            try:
                self._graph = cuda.capture(self._stream, self._execute)
                self._graph_note = "captured"
            except RuntimeError as error:
                self._graph_note = f"not used: {error}"

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            reason = logger_of(load_module(self.flavour)).take()
            raise RuntimeError(f"{self.flavour.title} could not run {self.file}: {reason}")

    def close(self) -> None:
        """Keep what RTX compiled, and free everything. Safe to call twice."""
        if self._context is not None:
            self._save_runtime_cache()
        cuda = self._cuda
        if cuda is not None and self._graph is not None:
            with suppress(CudaError):  # after a failed kernel every call fails; the first counts
                cuda.destroy_graph(self._graph)
        self._graph = self._context = None  # each of these may use the ones below it
        self._cache = self._engine = None
        self._runtime = None
        if self._buffers is not None:
            with suppress(CudaError):
                self._buffers.close()
        if cuda is not None and self._stream is not None:
            with suppress(CudaError):
                cuda.destroy_stream(self._stream)
        self._buffers = self._stream = None

    def describe(self) -> dict[str, Any]:
        """Return the engine's file, version, GPU, and what became of the CUDA graph."""
        return {
            "engine": self.entry.file,
            "target": self.entry.target,
            "version": self.entry.fingerprint["backend_version"],
            "gpu": self._gpu.name if self._gpu else None,
            "cuda_graph": self._graph_note,
            "device_memory_mib": self._device_memory_mib,
        }


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
        if entry is None or not ok:
            raise BackendUnavailable(f"{reason}; {_rebuild(bundle.path, self.name, target)}")
        return TensorRTRunner(bundle.part(part), self.flavour, bundle.path, entry)


def _rebuild(folder: Path, backend: str, target: str) -> str:
    command = f"structsam-export build {folder} --backend {backend} --target {target}"
    return f"build it with `{command}`"


def _dims(spec: TensorSpec) -> list[str]:
    return [dim for dim in spec.shape if isinstance(dim, str)]


def _shape(spec: TensorSpec, bound: dict[str, int]) -> tuple[int, ...]:
    return tuple(bound[dim] if isinstance(dim, str) else dim for dim in spec.shape)


def _size(spec: TensorSpec, bound: dict[str, int]) -> int:
    return int(np.prod(_shape(spec, bound))) * np.dtype(spec.dtype).itemsize
