"""Where a model's weights come from: what manifests, results and reports say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.models import ModelSpec


@dataclass(frozen=True)
class ModelSource:
    """A model and where its weights come from.

    Args:
        model: key of `structsam.models.MODELS`.
        checkpoint: official `.pth`, or `.safetensors` with the same keys; None takes the weights
            of the package, where it has some.
        weights: `random` to do without a checkpoint.
        seed: of random weights.
    """

    model: str
    checkpoint: str | Path | None = None
    weights: str | None = None
    seed: int = 0

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes; raises `UserError` for an unknown one."""
        from structsam.models import model_spec

        return model_spec(self.model)

    def describe(self) -> dict[str, Any]:
        """Say where the weights come from, for manifests and records."""
        from structsam.models.checkpoint_file import identify_checkpoint
        from structsam.models.load import weights_file

        path = weights_file(self.spec, self.checkpoint, self.weights)
        if path is None:
            random = {"weights": self.weights, "seed": self.seed, "checkpoint": None}
            return {"name": self.model, **random}
        source = "embedded" if self.checkpoint is None else "checkpoint"
        identity = identify_checkpoint(path).to_dict()
        return {"name": self.model, "weights": source, "seed": None, "checkpoint": identity}

    def load(self) -> Sam:
        """Load the unmerged model, float32 and in eval mode."""
        import structsam

        return structsam.load_sam(self.model, self.checkpoint, self.weights, self.seed)


def weights_title(source: Mapping[str, Any]) -> str:
    """Say it in a few words, for what `ModelSource.describe` returned."""
    checkpoint = source["checkpoint"]
    if checkpoint is None:
        return f"random weights, seed {source['seed']}"
    if source["weights"] == "embedded":
        return "the weights of the package"
    return str(checkpoint["file"])
