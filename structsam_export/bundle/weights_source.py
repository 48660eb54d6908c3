"""Where a model's weights come from: what manifests, results and reports say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.models import ModelSpec


@dataclass(frozen=True)
class ModelRecord:
    """`model` of a manifest: which model it is, and where its weights came from.

    Args:
        name: key of `structsam.models.MODELS`.
        weights: `checkpoint`, `embedded` (they come with the package) or `random`.
        seed: of random weights.
        checkpoint: what `CheckpointIdentity.to_dict` says of the weight file; None for random ones.
    """

    name: str
    weights: str
    seed: int | None = None
    checkpoint: Mapping[str, Any] | None = None

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelRecord:
        """Read the form that `to_dict` has after a trip through JSON."""
        name = data.get("name", "unknown")
        return ModelRecord(name, data["weights"], data.get("seed"), data.get("checkpoint"))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return asdict(self)

    @property
    def is_random(self) -> bool:
        """Whether masks carry no meaning."""
        return self.weights == "random"

    @property
    def sha256(self) -> str | None:
        """Hex digest of the weight file; None for random weights."""
        return None if self.checkpoint is None else str(self.checkpoint["sha256"])

    @property
    def title(self) -> str:
        """Where the weights come from, in a few words."""
        if self.checkpoint is None:
            return f"random weights, seed {self.seed}"
        if self.weights == "embedded":
            return "the weights of the package"
        return str(self.checkpoint["file"])


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

    def require(self) -> None:
        """Refuse an unknown model or a missing file before torch is loaded; raises `UserError`."""
        from structsam.models.load import weights_file

        weights_file(self.spec, self.checkpoint, self.weights)

    def describe(self) -> ModelRecord:
        """Say where the weights come from, for manifests and records."""
        from structsam.models.checkpoint_file import identify_checkpoint
        from structsam.models.load import weights_file

        path = weights_file(self.spec, self.checkpoint, self.weights)
        if path is None:
            return ModelRecord(self.model, "random", self.seed)
        source = "embedded" if self.checkpoint is None else "checkpoint"
        return ModelRecord(self.model, source, checkpoint=identify_checkpoint(path).to_dict())

    def load(self) -> Sam:
        """Load the unmerged model, float32 and in eval mode."""
        import structsam

        return structsam.load_sam(self.model, self.checkpoint, self.weights, self.seed)
