"""A training run's checkpoint, and the weights that come of it, for `train_vit_t.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from structsam import load_sam
from structsam.errors import UserError
from structsam.models import ModelSpec, model_spec
from structsam.models.load import build_sam
from structsam_export.bundle.atomic import staged_file


def read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"No checkpoint {path}: train first, or point --out at the run's folder.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"Cannot read {path} ({type(error).__name__}): start again.") from error
    return state


def export_weights(run: Path, target: Path, spec: ModelSpec) -> None:
    """Write the averaged weights of a run's checkpoint as FP16 safetensors, and load them back."""
    from safetensors.torch import save_file

    state = read_checkpoint(run / "checkpoint.pt")
    # averages are kept in the order of the parameters
    names = [name for name, _ in build_sam(spec, 0).named_parameters()]
    weights = dict(state["model"])
    weights.update(zip(names, state["average"], strict=True))
    if target.suffix != ".safetensors":
        raise UserError(f"--export {target}: the name must end in .safetensors.")
    with staged_file(target) as temporary:
        save_file(
            {name: tensor.half().contiguous() for name, tensor in weights.items()},
            str(temporary),
            {"model": spec.name, "step": str(state["step"])},
        )
    if spec == model_spec(spec.name):
        load_sam(spec.name, checkpoint=target)
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, averaged weights of step {state['step']}")
