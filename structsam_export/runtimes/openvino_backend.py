"""OpenVINO: it reads a bundle's ONNX files and compiles them for a CPU, or an Intel GPU or NPU."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName, TensorSpec
from structsam_export.runtimes.base import Arrays, Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.device_tensor import Feeds
from structsam_export.runtimes.openvino_cache import ModelCache
from structsam_export.runtimes.openvino_select import select_in_floats

_log = logging.getLogger("structsam_export")
_INSTALL = "install it with `pip install 'structsam[openvino]'`"
_CPU = "CPU"
#: What may be asked for behind the device: the type that products are computed in.
_TYPES = ("f32", "f16", "bf16")


class OpenVinoRunner(Runner):
    """One compiled network and one request, which is used again for every call."""

    def __init__(
        self, bundle: Bundle, part: PartName, device: str, compute_type: str, options: RunOptions
    ) -> None:
        super().__init__(bundle.part(part))
        self._file = bundle.onnx_path(part)
        self._device, self._compute_type, self._threads = device, compute_type, options.threads
        self._cache = ModelCache(bundle.path, part) if options.keep_compiled else None
        self._network: Any = None
        self._request: Any = None

    def open(self) -> None:
        """Read the ONNX file, and compile it or take what an earlier process compiled.

        Raises:
            BackendUnavailable: the device cannot run this network.
        """
        import openvino

        core = openvino.Core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By itself it takes BF16 where the processor has it: an embedding 1e-2 off.
            "INFERENCE_PRECISION_HINT": self._compute_type,
        }
        if self._device == _CPU:
            # The softmax of trained weights makes denormal numbers, which are slow.
            settings["CPU_DENORMALS_OPTIMIZATION"] = True
            # Processes that run beside one another would be bound to the same core.
            settings["ENABLE_CPU_PINNING"] = False
            if self._threads:
                settings["INFERENCE_NUM_THREADS"] = self._threads
        cached = self._cache.settings() if self._cache else {}
        try:
            model = core.read_model(str(self._file))
            if self._device == _CPU:
                select_in_floats(model)
            self._network = self._compiled(core, model, settings, cached)
        except RuntimeError as error:
            raise BackendUnavailable(
                f"OpenVINO cannot run {self._file.name} on {self._device}: {_first_line(error)}; "
                "choose another backend"
            ) from error
        if self._device == _CPU:
            self._require_type()
        self._request = self._network.create_infer_request()

    def _require_type(self) -> None:
        """A processor that cannot compute in a type falls back to f32, and does not say so."""
        found = self._network.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != self._compute_type:
            self.close()
            raise BackendUnavailable(
                f"OpenVINO computes in {found} on this CPU, which has no {self._compute_type}; "
                f"choose openvino:{found}"
            )

    def _compiled(
        self, core: Any, model: Any, settings: dict[str, Any], cached: dict[str, str]
    ) -> Any:
        try:
            network = core.compile_model(model, self._device, settings | cached)
        except RuntimeError as error:  # a folder that cannot be written, a full disk
            if not cached:
                raise
            _log.debug("OpenVINO keeps nothing in %s: %s", cached, _first_line(error))
            return core.compile_model(model, self._device, settings)
        if self._cache and cached:
            self._cache.note_new()
        return network

    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        self._request.infer(dict(feeds), share_inputs=True)
        # copied: the next call computes into the same memory
        return {s.name: np.array(self._request.get_tensor(s.name).data) for s in outputs}

    def close(self) -> None:
        """Drop the network."""
        self._request = self._network = None

    def describe(self) -> dict[str, Any]:
        """Return the device, what it computes in, its threads, and whether it was compiled now."""
        device, network = self._device, self._network
        facts = {
            "device": device.lower(),
            "precision": network.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "from_cache": network.get_property("LOADED_FROM_CACHE"),
        }
        if device == _CPU:
            facts["threads"] = network.get_property("INFERENCE_NUM_THREADS")
        return facts


class OpenVinoBackend(Backend):
    """OpenVINO on one device.

    Args:
        device: `CPU`, `GPU`, `GPU.1` or `NPU`.
        compute_type: `f32`, `f16` or `bf16`; None takes f32, on other devices than the CPU f16
            for bundles of FP16.
    """

    def __init__(self, device: str = _CPU, compute_type: str | None = None) -> None:
        self.device, self.compute_type = device, compute_type
        words = ["openvino", *([device] if device != _CPU else []), *filter(None, [compute_type])]
        self.name = ":".join(words)
        self.title = f"OpenVINO, {device}" + (f", {compute_type}" if compute_type else "")

    def on(self, device: str) -> OpenVinoBackend:
        """Return it on another device or with another type: `GPU`, `bf16` or `GPU:f16`."""
        named, _, last = device.rpartition(":")
        if last.lower() in _TYPES:
            return OpenVinoBackend(named.upper() or _CPU, last.lower())
        if named:
            raise UserError(
                f"{last!r} is no type that OpenVINO computes in. Use one of: {', '.join(_TYPES)}"
            )
        return OpenVinoBackend(last.upper())

    def why_unavailable(self) -> str | None:
        """Return None when openvino is installed and finds the device."""
        if importlib.util.find_spec("openvino") is None:
            return f"openvino is not installed; {_INSTALL}"
        try:
            import openvino

            found = openvino.Core().available_devices
        except (ImportError, OSError, RuntimeError) as error:
            return f"openvino is installed and cannot be loaded ({_first_line(error)}); {_INSTALL}"
        if self.device in found or f"{self.device}.0" in found:
            return None
        return (
            f"OpenVINO finds no {self.device} here, only {', '.join(found) or 'nothing'}; install "
            "its driver, or choose another backend"
        )

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner of the bundle's ONNX file."""
        if reason := self.why_unavailable():
            raise BackendUnavailable(reason)
        if self.device == _CPU and bundle.precision == "int8":
            raise BackendUnavailable(
                "`int8` bundles are for GPUs: on CPUs without VNNI sums of their 8-bit products "
                "are cut off. Export with `precision=int8-fp32`, or choose another backend"
            )
        in_half = self.device != _CPU and not bundle.precision.endswith("fp32")
        compute_type = self.compute_type or ("f16" if in_half else "f32")
        return OpenVinoRunner(bundle, part, self.device, compute_type, options)


def _first_line(error: BaseException) -> str:
    """What OpenVINO says, without where in its sources it says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0]
