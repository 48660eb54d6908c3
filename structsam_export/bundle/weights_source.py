"""Where a model's weights come from: what manifests, results and reports say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_weights(
    model: str, checkpoint: str | Path | None, weights: str | None, seed: int
) -> dict[str, Any]:
    """Say where the weights come from, for the manifest."""
    from structsam.models import model_spec
    from structsam.models.checkpoint_file import identify_checkpoint
    from structsam.models.load import weights_file

    path = weights_file(model_spec(model), checkpoint, weights)
    if path is None:
        return {"name": model, "weights": weights, "seed": seed, "checkpoint": None}
    source = "embedded" if checkpoint is None else "checkpoint"
    identity = identify_checkpoint(path).to_dict()
    return {"name": model, "weights": source, "seed": None, "checkpoint": identity}


def weights_title(source: Mapping[str, Any]) -> str:
    """Say it in a few words, for what `describe_weights` returned."""
    checkpoint = source["checkpoint"]
    if checkpoint is None:
        return f"random weights, seed {source['seed']}"
    if source["weights"] == "embedded":
        return "the weights of the package"
    return str(checkpoint["file"])
