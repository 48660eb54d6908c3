"""PyTorch: the reference. It rebuilds the merged model from the checkpoint that was exported."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec
from structsam_export.graph.precisions import is_quantized
from structsam_export.runtimes.base import Arrays, Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.runtimes.device_tensor import DeviceTensor, Feed, Feeds

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

    from structsam.models import Preprocessing

NO_INT8 = "PyTorch rebuilds the model from its weights, and INT8 is in the bundle's ONNX alone"
_INSTALL = "install it with `pip install 'structsam[export]'`"


class TorchTensor(DeviceTensor):
    """A tensor of PyTorch, which owns its memory: it holds even after its runner is closed."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.shape = tuple(value.shape)
        self.dtype = np.dtype(str(value.dtype).removeprefix("torch."))

    def numpy(self) -> np.ndarray:
        """Return it in host memory."""
        array: np.ndarray = self.value.cpu().numpy()
        return array


class TorchRunner(Runner):
    """The encoder or decoder module, in the bundle's precision, on CUDA where there is one."""

    def __init__(
        self,
        part: Part,
        name: PartName,
        load: Callable[[], Sam],
        precision: str,
        threads: int | None = None,
    ) -> None:
        super().__init__(part)
        self._name, self._load, self._precision, self._threads = name, load, precision, threads
        self._module: Any = None
        self._device = "cpu"

    def open(self) -> None:
        """Load the weights and put the merging in."""
        import torch

        from structsam_export.graph.modules import DecoderModule, EncoderModule

        if self._threads:
            torch.set_num_threads(self._threads)
        sam = self._load()
        torch.backends.cudnn.allow_tf32 = False
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        module = (
            EncoderModule(sam, self._precision)
            if self._name == "encoder"
            else DecoderModule(sam, self._precision)
        )
        self._module = module.to(self._device)

    def _run(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> Arrays:
        return {name: value.cpu().numpy() for name, value in self._compute(feeds, outputs).items()}

    def _run_on_device(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> dict[str, TorchTensor]:
        import torch

        found = self._compute(feeds, outputs)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return {name: TorchTensor(self._kept(value)) for name, value in found.items()}

    def _device_ms(self, feeds: Feeds) -> float | None:
        if self._device != "cuda":
            return None
        import torch

        there: Feeds = {name: TorchTensor(self._tensor(feed)) for name, feed in feeds.items()}
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        self._compute(there, self.part.outputs)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _takes(self, tensor: DeviceTensor) -> bool:
        return isinstance(tensor, TorchTensor) and tensor.value.device.type == self._device

    def _compute(self, feeds: Feeds, outputs: Sequence[TensorSpec]) -> dict[str, Tensor]:
        import torch

        with_plans = any(spec in self.part.plan_outputs for spec in outputs)
        specs = self.part.all_outputs if with_plans else self.part.outputs
        with torch.inference_mode():
            inputs = [self._tensor(feeds[spec.name]) for spec in self.part.inputs]
            found = self._function(with_plans)(*inputs)
            values = found if isinstance(found, tuple) else (found,)
            named = dict(zip((spec.name for spec in specs), values, strict=True))
            return {spec.name: named[spec.name] for spec in outputs}

    def _tensor(self, feed: Feed) -> Tensor:
        import torch

        if isinstance(feed, TorchTensor):
            return feed.value
        return torch.from_numpy(feed).to(self._device)

    def _kept(self, value: Tensor) -> Tensor:
        """What may stay on the device: the module makes new tensors in every call."""
        return value

    def _function(self, with_plans: bool) -> Any:
        """What maps inputs to outputs: plans are only recorded to be looked at."""
        if self._name == "encoder" and not with_plans:
            return self._module.encode
        return self._module

    def close(self) -> None:
        """Drop the module."""
        self._module = None

    def describe(self) -> dict[str, Any]:
        """Return the device, and on a GPU the peak of torch's allocator."""
        if self._device == "cpu":
            return {"device": "cpu"}
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
        return {"device": self._device, "device_memory_mib": round(peak, 1)}


class TorchBackend(Backend):
    """PyTorch on the CPU or CUDA."""

    name = "torch"
    title = "PyTorch (reference)"
    needs_weights = True

    def why_unavailable(self) -> str | None:
        """Return None when torch, segment-anything and safetensors are installed."""
        for package in ("torch", "torchvision", "segment_anything", "safetensors"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed; {_INSTALL}"
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner that rebuilds the model; see `load_merged_sam`."""
        self.require_weights(bundle, options)
        if is_quantized(bundle.precision):
            raise BackendUnavailable(NO_INT8)
        load = partial(load_merged_sam, bundle, options)
        return TorchRunner(bundle.part(part), part, load, bundle.precision, options.threads)

    def require_weights(self, bundle: Bundle, options: RunOptions) -> None:
        """Raise `BackendUnavailable` unless torch and a bundle's weights are here."""
        if reason := self.why_unavailable():
            raise BackendUnavailable(reason)
        if bundle.needs_checkpoint and options.checkpoint is None:
            raise BackendUnavailable(
                f"a bundle holds no weights for torch; pass `checkpoint={bundle.model.title}`"
            )


class InMemoryBackend(TorchBackend):
    """A `Sam` in memory, merged or not, behind the same contract: for models without a bundle."""

    def __init__(self, sam: Sam, precision: str = "fp32") -> None:
        self.sam, self.precision = sam, precision

    def in_memory_bundle(self, preprocessing: Preprocessing) -> Bundle:
        """Return what a predictor asks a bundle for; nothing of it is on disk."""
        from structsam_export.graph.modules import DecoderModule, EncoderModule

        manifest = {
            "name": "in memory",
            "preprocessing": preprocessing.to_dict(),
            "encoder": EncoderModule(self.sam).part("").to_dict(),
        }
        if self.sam.mask_decoder is not None:
            manifest["decoder"] = DecoderModule(self.sam).part("").to_dict()
        return Bundle(Path("the model in memory"), manifest)

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner of the model as it is now."""
        if reason := self.why_unavailable():
            raise BackendUnavailable(reason)
        return TorchRunner(
            bundle.part(part), part, lambda: self.sam, self.precision, options.threads
        )


def load_merged_sam(bundle: Bundle, options: RunOptions) -> Sam:
    """Rebuild the merged SAM of a bundle in float32; of a benchmark's stock row the stock SAM.

    Raises:
        BackendUnavailable: the checkpoint is not the one that was exported, or this version no
            longer has the bundle's merging.
    """
    from structsam.apply import apply_merging
    from structsam.config import MergeConfig
    from structsam.models.checkpoint_file import identify_checkpoint
    from structsam.models.load import load_sam, weights_file

    model, merging = bundle.model, bundle.manifest["merging"]
    stock = merging["attention"] == "stock"
    try:
        config = None if stock else MergeConfig.from_dict(merging)
    except UserError as reason:
        raise BackendUnavailable(str(reason)) from reason
    if bundle.has_random_weights:
        sam = load_sam(model.spec, weights="random", seed=model.seed or 0)
    else:
        # without a checkpoint the weights are embedded: TorchBackend.runner has checked
        path = options.checkpoint or weights_file(model.spec)
        assert path is not None
        found = identify_checkpoint(path)
        if found.sha256 != model.sha256:
            raise BackendUnavailable(
                f"{path} is not the checkpoint of this bundle: SHA-256 "
                f"{found.sha256[:12]}..., not {str(model.sha256)[:12]}... ({model.title})"
            )
        sam = load_sam(model.spec, checkpoint=path)
    return sam if config is None else apply_merging(sam, config)
