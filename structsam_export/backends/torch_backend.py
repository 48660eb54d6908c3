"""PyTorch: the reference. It rebuilds the merged model from the checkpoint that was exported."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from structsam_export.backends.base import Arrays, Backend, BackendUnavailable, Runner, RunOptions
from structsam_export.bundle import Bundle, Part, PartName

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_INSTALL = "install it with `pip install 'structsam[export]'`"


class TorchRunner(Runner):
    """The encoder or decoder module, in the bundle's precision, on CUDA where there is one."""

    def __init__(self, part: Part, bundle: Bundle, name: PartName, options: RunOptions) -> None:
        super().__init__(part)
        self.bundle, self.name, self.options = bundle, name, options
        self._module: Any = None
        self._device = "cpu"

    def open(self) -> None:
        """Load the weights and put the merging in."""
        import torch

        from structsam_export.graph_modules import DecoderModule, EncoderModule

        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        sam = load_merged_sam(self.bundle, self.options)
        precision = self.bundle.precision
        torch.backends.cudnn.allow_tf32 = False
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        module = (
            EncoderModule(sam.image_encoder, precision)
            if self.name == "encoder"
            else DecoderModule(sam, precision)
        )
        self._module = module.to(self._device)

    def _run(self, feeds: Arrays) -> Arrays:
        import torch

        with torch.inference_mode():
            inputs = [torch.from_numpy(feeds[s.name]).to(self._device) for s in self.part.inputs]
            outputs = self._module(*inputs)
            names = [spec.name for spec in self.part.outputs] + getattr(
                self._module, "plan_names", []
            )
            return {name: value.cpu().numpy() for name, value in zip(names, outputs, strict=True)}

    def close(self) -> None:
        """Drop the module."""
        self._module = None

    def describe(self) -> dict[str, Any]:
        """Return the device."""
        return {"device": self._device}


class TorchBackend(Backend):
    """PyTorch on the CPU or CUDA."""

    name = "torch"
    title = "PyTorch (reference)"

    def why_unavailable(self) -> str | None:
        """Return None when torch, segment-anything and safetensors are installed."""
        for package in ("torch", "torchvision", "segment_anything", "safetensors"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed; {_INSTALL}"
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        """Return a runner that rebuilds the model; see `load_merged_sam`."""
        self._require_weights(bundle, options)
        return TorchRunner(bundle.part(part), bundle, part, options)

    def plan_runner(self, bundle: Bundle, options: RunOptions) -> Runner:
        """Return the encoder's runner: it gives the plans beside the embedding."""
        return self.runner(bundle, "encoder", options)

    def _require_weights(self, bundle: Bundle, options: RunOptions) -> None:
        if reason := self.why_unavailable():
            raise BackendUnavailable(reason)
        if not bundle.has_random_weights and options.checkpoint is None:
            raise BackendUnavailable(
                "a bundle holds no weights for torch; pass "
                f"--checkpoint {bundle.manifest['model']['checkpoint']['file']}"
            )


def load_merged_sam(bundle: Bundle, options: RunOptions) -> Sam:
    """Rebuild the merged SAM of a bundle in float32.

    Raises:
        UserError: the checkpoint is not the one that was exported.
    """
    from structsam.apply import apply_config
    from structsam.config import MergeConfig
    from structsam.models.checkpoint_file import identify_checkpoint
    from structsam.models.load import load_sam

    model, merging = bundle.manifest["model"], bundle.manifest["merging"]
    if bundle.has_random_weights:
        sam = load_sam(model["name"], weights="random", seed=model["seed"])
    else:
        assert options.checkpoint is not None  # TorchBackend.runner has checked
        found = identify_checkpoint(options.checkpoint)
        if found.sha256 != model["checkpoint"]["sha256"]:
            raise BackendUnavailable(
                f"{options.checkpoint} is not the checkpoint of this bundle: SHA-256 "
                f"{found.sha256[:12]}..., not {model['checkpoint']['sha256'][:12]}... "
                f"({model['checkpoint']['file']})"
            )
        sam = load_sam(model["name"], checkpoint=options.checkpoint)
    return apply_config(sam, MergeConfig.from_dict(merging))
