"""ONNX Runtime, on the CPU (runs everywhere) or CUDA. It runs a bundle's ONNX files as they are."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec
from structsam_export.runtimes.base import Arrays, Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.cuda_memory import Cuda, open_cuda
from structsam_export.runtimes.device_tensor import DeviceTensor, Feeds

_log = logging.getLogger("structsam_export")
_EXTRA = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "gpu"}


class OrtTensor(DeviceTensor):
    """An `OrtValue`, which owns its memory: it holds even after its session is gone."""

    def __init__(self, value: Any, dtype: str) -> None:
        self.value = value
        self.shape, self.dtype = tuple(value.shape()), np.dtype(dtype)

    def numpy(self) -> np.ndarray:
        """Return it in host memory."""
        array: np.ndarray = self.value.numpy()
        return array


class OnnxRuntimeRunner(Runner):
    """An `onnxruntime.InferenceSession` with exactly one execution provider asked for."""

    def __init__(self, part: Part, file: Path, provider: str, options: RunOptions) -> None:
        super().__init__(part)
        self.file = file
        self.provider = provider
        self.threads = options.threads
        self._for_timing = options.for_timing
        self._session: Any = None
        self._cuda: Cuda | None = None
        self._stream: Any = None
        self._no_device_time: str | None = None

    def open(self) -> None:
        """Create the session; a provider that silently falls back to the CPU is refused."""
        import onnxruntime as ort

        on_cpu = self.provider == "CPUExecutionProvider"
        said = "" if on_cpu else _preload_cuda(ort)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if on_cpu:
            # Planning one block for all activations costs ViT-B 1 GB and the second call 1.5 s of
            # page faults on a CPU, and gains nothing measurable: docs/performance.md.
            options.enable_mem_pattern = False
        # The softmax of trained weights makes denormal numbers, which processors compute with a
        # hundred times slower: 1.3 to 1.5 times the whole encoder's time.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if self.threads:
            options.intra_op_num_threads = self.threads
        providers: list[Any] = [self.provider]
        if not on_cpu:
            # FP32 is to be FP32; shape arithmetic stays on the host
            settings = {"use_tf32": "0", **self._own_stream()}
            providers = [(self.provider, settings), "CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(str(self.file), options, providers=providers)
        except BaseException:
            self.close()
            raise
        if self.provider not in self._session.get_providers():
            found = ", ".join(self._session.get_providers())
            self.close()
            raise BackendUnavailable(
                f"ONNX Runtime could not start {self.provider}: it fell back to "
                f"{found}. {said}Install CUDA and cuDNN with `pip install 'structsam[gpu]'`"
            )

    def _own_stream(self) -> dict[str, str]:
        """A stream that CUDA events can be put on; ONNX Runtime's own is not to be had."""
        if not self._for_timing:
            return {}
        try:
            cuda = open_cuda("gpu")
            self._stream = cuda.create_stream()
        except (BackendUnavailable, RuntimeError) as reason:  # CudaError: bindings newer than CUDA
            self._no_device_time = str(reason)
            return {}
        self._cuda = cuda
        return {"user_compute_stream": str(int(self._stream))}

    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        found = self._run_bound(feeds, outputs, "cpu")
        return {name: value.numpy() for name, value in found.items()}

    def _run_on_device(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> dict[str, OrtTensor]:
        found = self._run_bound(feeds, outputs, self._device)
        return {spec.name: OrtTensor(found[spec.name], spec.dtype) for spec in outputs}

    def _takes(self, tensor: DeviceTensor) -> bool:
        return isinstance(tensor, OrtTensor) and tensor.value.device_name() == self._device

    def _run_bound(
        self, feeds: Feeds, outputs: Sequence[TensorSpec], device: str
    ) -> dict[str, Any]:
        """Return `OrtValue`s on a device (`cpu` or `cuda`), which ONNX Runtime allocates."""
        binding = self._bind(feeds, outputs, device)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        names = (spec.name for spec in outputs)
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _bind(self, feeds: Feeds, outputs: Sequence[TensorSpec], device: str) -> Any:
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, OrtTensor):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                binding.bind_cpu_input(name, feed)
        for spec in outputs:
            binding.bind_output(spec.name, device)
        return binding

    def _device_ms(self, feeds: Feeds) -> float | None:
        if self._cuda is None:
            return None
        import onnxruntime as ort

        there = dict(feeds)
        for name, feed in feeds.items():
            if isinstance(feed, np.ndarray):
                value = ort.OrtValue.ortvalue_from_numpy(feed, self._device, 0)
                there[name] = OrtTensor(value, str(feed.dtype))
        binding = self._bind(there, self.part.outputs, self._device)
        binding.synchronize_inputs()
        return self._cuda.elapsed_ms(
            self._stream, lambda: self._session.run_with_iobinding(binding)
        )

    @property
    def _device(self) -> str:
        return "cpu" if self.provider == "CPUExecutionProvider" else "cuda"

    def close(self) -> None:
        """Drop the session and its stream. Safe to call twice."""
        self._session = None
        if self._cuda is not None:
            self._cuda.destroy_stream(self._stream)
        self._cuda = self._stream = None

    def describe(self) -> dict[str, Any]:
        """Return the active providers, the number of threads, and why there is no device time."""
        facts = {"providers": self._session.get_providers(), "threads": self.threads}
        if self._no_device_time is not None:
            facts["no_device_time"] = self._no_device_time
        return facts


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime with one execution provider."""

    def __init__(self, name: str, provider: str) -> None:
        self.name = name
        self.title = f"ONNX Runtime, {provider}"
        self.provider = provider

    def why_unavailable(self) -> str | None:
        """Return None when onnxruntime is installed and was built with the provider."""
        fix = f"install it with `pip install 'structsam[{_EXTRA[self.provider]}]'`"
        if self.provider == "CUDAExecutionProvider":
            fix += " after `pip uninstall onnxruntime`, because both are one Python module"
        if importlib.util.find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed; {fix}"
        import onnxruntime as ort

        if self.provider not in ort.get_available_providers():
            return f"this onnxruntime has no {self.provider}; {fix}"
        if self.provider == "CUDAExecutionProvider" and not _has_nvidia_gpu():
            return "no NVIDIA GPU is visible here; choose another backend"
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner of the bundle's ONNX file."""
        if reason := self.why_unavailable():
            raise BackendUnavailable(reason)
        return OnnxRuntimeRunner(bundle.part(part), bundle.onnx_path(part), self.provider, options)


@functools.cache
def _preload_cuda(ort: Any) -> str:
    """Load the CUDA and cuDNN that pip installed, where no system loader looks, once a process.

    Returns:
        What it could not find, in a sentence with a space behind; empty when it said nothing.
    """
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return ""
    with redirect_stdout(io.StringIO()) as said:  # it prints, also into `--json`
        ort.preload_dlls()
    text = "; ".join(line.strip() for line in said.getvalue().splitlines() if line.strip())
    if text:
        _log.debug("onnxruntime.preload_dlls: %s", text)
    return f"{text}. " if text else ""


def _has_nvidia_gpu() -> bool:
    """Ask the driver; ONNX Runtime only says what it was built for."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )
