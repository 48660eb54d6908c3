"""Where a model's weights come from: what manifests, results and reports say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.models import ModelSpec
    from structsam.models.spec import Embedding


@dataclass(frozen=True)
class ModelRecord:
    """`model` of a manifest: which model it is, and where its weights came from.

    Args:
        name: key of `structsam.models.MODELS`, or of a model that `geometry` describes.
        weights: `checkpoint`, `embedded` (they come with the package) or `random`.
        seed: of random weights.
        checkpoint: what `CheckpointIdentity.to_dict` says of the weight file; None for random ones.
        image_size, embedding: of a model at another input size than the trained one, as in
            `structsam.load_sam`; None at that, and in records older than sizes.
        geometry: what `spec_to_dict` says of a model that is none of `MODELS`, or of one of them
            with a preprocessing of its checkpoint's own; else None.
    """

    name: str
    weights: str
    seed: int | None = None
    checkpoint: Mapping[str, Any] | None = None
    image_size: int | None = None
    embedding: Embedding = "native"
    geometry: Mapping[str, Any] | None = None

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelRecord:
        """Read the form that `to_dict` has after a trip through JSON."""
        name = data.get("name", "unknown")
        return ModelRecord(
            name,
            data["weights"],
            data.get("seed"),
            data.get("checkpoint"),
            data.get("image_size"),
            data.get("embedding", "native"),
            data.get("geometry"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; at the trained size nothing is said of sizes."""
        said = asdict(self)
        del said["image_size"], said["embedding"], said["geometry"]
        described = {} if self.geometry is None else {"geometry": self.geometry}
        return said | self.size | described

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes; raises `UserError` where this version does not know it."""
        from structsam.models import model_spec
        from structsam.models.image_size import resized
        from structsam.models.spec_file import spec_from_dict

        spec = (
            model_spec(self.name)
            if self.geometry is None
            else spec_from_dict(self.geometry, f"Model {self.name} of this record")
        )
        return resized(spec, self.image_size, self.embedding)

    @property
    def size(self) -> dict[str, Any]:
        """The input size and the form of the embedding; empty at the trained size."""
        if self.image_size is None:
            return {}
        return {"image_size": self.image_size, "embedding": self.embedding}

    @property
    def size_text(self) -> str:
        """The same for people, such as `768 pixels, upsample`; empty at the trained size."""
        if self.image_size is None:
            return ""
        form = "" if self.embedding == "native" else f", {self.embedding}"
        return f"{self.image_size} pixels{form}"

    @property
    def at_trained_size(self) -> ModelRecord:
        """The same weights, whatever the size of the input."""
        return replace(self, image_size=None, embedding="native")

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
        model: key of `structsam.models.MODELS`, a TOML file, or a description.
        checkpoint: as in `structsam.load_sam`; its folder may state a preprocessing of its own.
            None takes the weights of the package, where it has some.
        weights: `random` to do without a checkpoint.
        seed: of random weights.
        image_size, embedding: another side of the input in pixels, as in `structsam.load_sam`;
            None for the trained one.
    """

    model: str | ModelSpec
    checkpoint: str | Path | None = None
    weights: str | None = None
    seed: int = 0
    image_size: int | None = None
    embedding: Embedding = "native"

    @property
    def spec(self) -> ModelSpec:
        """The model at that size; raises `UserError` for an unknown model, size or form."""
        from structsam.models.find_model import find_model
        from structsam.models.image_size import resized

        spec, _ = find_model(self.model, self.checkpoint)
        return resized(spec, self.image_size, self.embedding)

    def require(self) -> None:
        """Refuse an unknown model or a missing file before torch is loaded; raises `UserError`."""
        from structsam.models.load import weights_file

        weights_file(self.spec, self.checkpoint, self.weights)

    def describe(self) -> ModelRecord:
        """Say where the weights come from, for manifests and records."""
        from structsam.models import MODELS
        from structsam.models.checkpoint_file import identify_checkpoint
        from structsam.models.load import weights_file
        from structsam.models.spec_file import spec_to_dict

        spec = self.spec
        path = weights_file(spec, self.checkpoint, self.weights)
        size = spec.image_size if spec.trained_image_size else None
        if path is None:
            found = ModelRecord(spec.name, "random", self.seed)
        else:
            source = "embedded" if self.checkpoint is None else "checkpoint"
            identity = identify_checkpoint(path).to_dict()
            found = ModelRecord(spec.name, source, checkpoint=identity)
        geometry = None if spec.trained == MODELS.get(spec.name) else spec_to_dict(spec)
        return replace(found, image_size=size, embedding=spec.embedding, geometry=geometry)

    def load(self) -> Sam:
        """Load the unmerged model, float32 and in eval mode."""
        import structsam

        return structsam.load_sam(self.spec, self.checkpoint, self.weights, self.seed)
