"""Which model is meant: a name, a TOML file, or whatever a checkpoint holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from structsam.errors import UserError
from structsam.models import MODELS, model_spec
from structsam.models.checkpoint_file import Checkpoint, read_checkpoint, width_and_depth
from structsam.models.checkpoint_preprocessing import preprocessing_note, with_its_preprocessing
from structsam.models.derived import derived_spec
from structsam.models.spec import DecoderSpec, ModelSpec
from structsam.models.spec_file import SUFFIX, read_spec, spec_from_dict, spec_to_dict

#: The name of whatever model a checkpoint holds.
AUTO = "auto"


def find_model(
    model: str | ModelSpec, checkpoint: str | Path | None = None
) -> tuple[ModelSpec, str]:
    """The description of a model, with the preprocessing that its checkpoint states.

    Args:
        model: an entry of `MODELS`, a TOML file (see `spec_file`), `auto` for what the checkpoint
            holds, or a description.
        checkpoint: as in `load_sam`.

    Returns:
        The description, and for `auto` a sentence on what was recognised, else nothing.

    Raises:
        UserError: an unknown name, an unusable file, or no checkpoint to derive a model from.
    """
    told = ""
    if isinstance(model, ModelSpec):
        spec = model
    elif model == AUTO:
        if checkpoint is None:
            raise UserError(
                "model='auto' takes the model from a checkpoint, and none is given: pass "
                "`checkpoint=FILE`, or name the model."
            )
        found = read_checkpoint(checkpoint)
        spec = with_its_preprocessing(model_of(found, checkpoint), checkpoint)
        known = spec.name in MODELS
        what = spec.name if known else f"a SAM that is no model here: {spec.geometry_text}"
        if spec.decoder is not None and replace(spec.decoder, hq=False) != DecoderSpec():
            what += f", its decoder's heads taken as {spec.decoder.num_heads}, which no shape tells"
        told = f"{Path(checkpoint).name} holds {what}, {found.title}{preprocessing_note(spec)}"
    elif model.endswith(SUFFIX):
        spec = read_spec(model)
        if spec.name in MODELS:
            raise UserError(
                f"Model file {model} is named {spec.name}, which is a model here. Set another "
                "`name` in it."
            )
    else:
        spec = model_spec(model)
    return with_its_preprocessing(spec, checkpoint), told


def model_of(checkpoint: Checkpoint, path: str | Path) -> ModelSpec:
    """The entry of `MODELS` whose geometry a checkpoint has, or else what its shapes say.

    Of models that share one (vit_b and medsam), the first. Raises `UserError` where the shapes
    describe no SAM.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    try:
        derived = derived_spec(shapes, checkpoint.names.naming.stretch_positions)
    except ValueError as reason:
        size = width_and_depth(checkpoint.state)
        for spec in MODELS.values():  # what differs from it is named when it is loaded
            if (spec.embed_dim, spec.depth) == size:
                return spec
        raise UserError(
            f"Checkpoint {path} tells no geometry: {reason}. Describe its model in a TOML file, "
            "and pass it as `model=`"
        ) from reason
    for spec in MODELS.values():
        if _geometry(spec) == _geometry(derived):
            return spec
    name = f"vit{derived.depth}x{derived.embed_dim}-p{derived.patch_size}-{derived.image_size}"
    named = replace(derived, name=name if derived.decoder else f"{name}-encoder")
    # what a manifest would not take back is refused now: sizes that nobody can run
    read = spec_from_dict(spec_to_dict(named), f"Checkpoint {path}, as derived")
    return replace(read, title=derived.geometry_text, weights_note=derived.weights_note)


def _geometry(spec: ModelSpec) -> tuple[object, ...]:
    return (
        (spec.embed_dim, spec.depth, spec.num_heads, spec.window_sizes),
        (spec.image_size, spec.patch_size, spec.channels, spec.decoder, spec.stretch_positions),
    )
