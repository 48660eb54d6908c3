"""Run one engine: its buffers, its stream, its contexts and their CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.files import inside
from structsam_export.bundle.manifest import EngineEntry, Part, TensorSpec
from structsam_export.runtimes.base import Arrays, Runner
from structsam_export.runtimes.cuda_graphs import GraphCache
from structsam_export.runtimes.cuda_memory import Cuda, Gpu, open_cuda
from structsam_export.runtimes.device_buffers import BufferTensor, DeviceBuffers
from structsam_export.runtimes.device_tensor import DeviceTensor, Feeds
from structsam_export.runtimes.kept_tensor import KeptTensor
from structsam_export.runtimes.tensorrt_contexts import Contexts
from structsam_export.runtimes.tensorrt_engine import read_engine
from structsam_export.runtimes.tensorrt_module import Flavour, construct, load_module, logger_of

#: Of every input its name, shape and device address: what a context is told before it runs.
Binding = tuple[tuple[str, tuple[int, ...], int], ...]

_log = logging.getLogger("structsam_export")


class TensorRTRunner(Runner):
    """A deserialized engine with buffers of the largest shape; see `open`.

    Args:
        fix: what the user should do when the engine is refused.
        eager: see `Contexts`.
    """

    def __init__(
        self,
        part: Part,
        flavour: Flavour,
        folder: Path,
        entry: EngineEntry,
        fix: str,
        eager: bool = False,
    ) -> None:
        super().__init__(part)
        self._eager = eager
        self.flavour = flavour
        self.folder = folder
        self.entry = entry
        self.file = inside(folder, entry.file)
        self._fix = fix
        self._dynamic = bool(part.profile)
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: Contexts | None = None
        self._context: Any = None
        self._has_run = False
        self._cuda: Cuda | None = None
        self._buffers: DeviceBuffers | None = None
        self._stream: Any = None
        self._graphs: GraphCache | None = None
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
        if damage := self.entry.damage(self.folder, digest="once"):
            raise UserError(f"{damage}. Build the engine again with `structsam-export build`")
        free = self._cuda.free_memory()
        try:
            self._runtime = construct(trt, self.flavour, "Runtime")
            self._engine = read_engine(
                trt, self.flavour, self._runtime, self.file, self.part, self._fix
            )
            self._contexts = Contexts(
                trt, self.flavour, self._engine, self._cuda, self.file, self._eager
            )
            self._stream = self._cuda.create_stream()
            largest = {name: sizes[2] for name, sizes in self.part.profile.items()}
            sizes = {spec.name: _size(spec, largest) for spec in self._specs}
            self._buffers = DeviceBuffers(self._cuda, sizes)
            self._context = self._new_context()
            if not self._contexts.captures_graphs:
                self._graphs = GraphCache(self._cuda, self._stream, at_once=not self._dynamic)
            self._device_memory_mib = round((free - self._cuda.free_memory()) / 2**20, 1)
        except BaseException:
            self.close()
            raise

    @property
    def _specs(self) -> tuple[TensorSpec, ...]:
        return (*self.part.inputs, *self.part.all_outputs)

    def _new_context(self) -> Any:
        """Return a context that reads and writes this runner's buffers."""
        assert self._contexts is not None and self._buffers is not None
        context = self._contexts.create()
        for spec in self._specs:
            self._set_address(context, spec.name, self._buffers.address(spec.name))
        return context

    def _set_address(self, context: Any, name: str, address: int) -> None:
        if not context.set_tensor_address(name, address):
            raise RuntimeError(f"{self.file} refuses the memory of {name}: {self._reason}")

    @property
    def _reason(self) -> str:
        return str(logger_of(load_module(self.flavour)).take())

    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        shapes = self._start_run(feeds)
        assert self._buffers is not None
        for spec in outputs:
            self._buffers.download(spec.name, _size(spec, shapes), self._stream)
        self._finish_run()
        return {
            spec.name: self._buffers.read(spec.name, _shape(spec, shapes), np.dtype(spec.dtype))
            for spec in outputs
        }

    def _run_on_device(
        self, feeds: Feeds, outputs: Sequence[TensorSpec]
    ) -> dict[str, BufferTensor]:
        shapes = self._start_run(feeds)
        self._finish_run()
        assert self._buffers is not None
        return {
            spec.name: self._buffers.tensor(
                spec.name, _shape(spec, shapes), np.dtype(spec.dtype), self._stream
            )
            for spec in outputs
        }

    def _device_ms(self, feeds: Feeds) -> float | None:
        _, binding = self._feed(feeds)
        assert self._cuda is not None and self._buffers is not None
        self._buffers.start_run()
        self._cuda.synchronize(self._stream)
        return self._cuda.elapsed_ms(self._stream, lambda: self._enqueue(binding))

    def _takes(self, tensor: DeviceTensor) -> bool:
        # the graph of a static network has the addresses of its own buffers
        return isinstance(tensor, KeptTensor) or (
            isinstance(tensor, BufferTensor) and self._dynamic
        )

    def _start_run(self, feeds: Feeds) -> dict[str, int]:
        """Put uploads and the network on the stream; return the sizes of dynamic dimensions."""
        shapes, binding = self._feed(feeds)
        assert self._buffers is not None
        self._buffers.start_run()
        self._enqueue(binding)
        return shapes

    def _feed(self, feeds: Feeds) -> tuple[dict[str, int], Binding]:
        """Start the uploads of what is not on the device yet."""
        assert self._buffers is not None, "open() comes first"
        shapes: dict[str, int] = {}
        binding = []
        for spec in self.part.inputs:
            feed = feeds[spec.name]
            named = zip(spec.shape, feed.shape, strict=True)
            shapes |= {dim: size for dim, size in named if isinstance(dim, str)}
            if isinstance(feed, BufferTensor):
                address = feed.address
            else:
                if isinstance(feed, KeptTensor):  # one graph then does for all kept images
                    self._buffers.take(spec.name, feed, self._stream)
                else:
                    assert isinstance(feed, np.ndarray)
                    self._buffers.upload(spec.name, feed, self._stream)
                address = self._buffers.address(spec.name)
            binding.append((spec.name, feed.shape, address))
        return shapes, tuple(binding)

    def _finish_run(self) -> None:
        assert self._cuda is not None
        self._cuda.synchronize(self._stream)
        if not self._has_run:  # a server may be killed before it closes anything
            self._has_run = True
            self._save_cache()

    def _enqueue(self, binding: Binding) -> None:
        """Put a run on the stream, as a CUDA graph where there is one."""
        graphs, context = self._graphs, self._context
        if graphs is None:
            self._execute(context, binding)
        elif not graphs.launch(binding):
            wanted = graphs.wants(binding)
            if wanted and self._dynamic:
                try:
                    context = self._new_context()
                except UserError as error:  # it runs without a graph, too
                    graphs.give_up(str(error))
                    wanted = False
            self._execute(context, binding)
            if wanted:
                graphs.capture(binding, context, lambda: self._start(context))

    def _execute(self, context: Any, binding: Binding) -> None:
        if self._dynamic:
            for name, shape, address in binding:
                if not context.set_input_shape(name, shape):
                    raise RuntimeError(
                        f"{self.file} refuses {name} of shape {shape}: {self._reason}"
                    )
                self._set_address(context, name, address)
        self._start(context)

    def _start(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise RuntimeError(f"{self.flavour.title} could not run {self.file}: {self._reason}")

    def _save_cache(self) -> None:
        """Keep what RTX compiled; nothing that fails here may hide another error."""
        try:
            if self._contexts is not None:
                self._contexts.save_cache()
        except Exception as error:
            _log.debug("the runtime cache of %s was not kept: %s", self.file, error)

    def close(self) -> None:
        """Keep what RTX compiled, and free everything. Safe to call twice."""
        if self._context is not None:
            self._save_cache()
        if self._graphs is not None:
            self._graphs.close()
        self._context = None  # each of these may use the ones below it
        if self._contexts is not None:
            self._contexts.close()
        self._contexts = self._engine = None
        self._runtime = None
        if self._buffers is not None:
            self._buffers.close()
        if self._cuda is not None and self._stream is not None:
            self._cuda.destroy_stream(self._stream)
        self._buffers = self._stream = None

    def describe(self) -> dict[str, Any]:
        """Return the engine's file, version, GPU, and what became of the CUDA graphs."""
        facts = {
            "engine": self.entry.file,
            "target": self.entry.target,
            "version": self.entry.fingerprint["backend_version"],
            "gpu": self._gpu.name if self._gpu else None,
            "cuda_graph": self._graphs.note if self._graphs else "captured by TensorRT-RTX",
            "device_memory_mib": self._device_memory_mib,
        }
        if self._contexts is not None and self._contexts.specialisation:
            facts["specialisation"] = self._contexts.specialisation
        return facts


def _shape(spec: TensorSpec, bound: dict[str, int]) -> tuple[int, ...]:
    return tuple(bound[dim] if isinstance(dim, str) else dim for dim in spec.shape)


def _size(spec: TensorSpec, bound: dict[str, int]) -> int:
    return int(np.prod(_shape(spec, bound))) * np.dtype(spec.dtype).itemsize
