"""The SAM family. A new model is one file in this folder and one line in `MODELS`."""

from structsam.errors import UserError
from structsam.models.cpsam import CPSAM
from structsam.models.medsam import MEDSAM
from structsam.models.sam_hq_vit import VIT_B_HQ, VIT_H_HQ, VIT_L_HQ
from structsam.models.segment_anything_vit import VIT_B, VIT_H, VIT_L
from structsam.models.spec import DecoderSpec, ModelSpec, OfficialCheckpoint, Preprocessing
from structsam.models.vit_t import VIT_T

MODELS: dict[str, ModelSpec] = {
    "vit_t": VIT_T,
    "vit_b": VIT_B,
    "vit_l": VIT_L,
    "vit_h": VIT_H,
    "medsam": MEDSAM,
    "vit_b_hq": VIT_B_HQ,
    "vit_l_hq": VIT_L_HQ,
    "vit_h_hq": VIT_H_HQ,
    "cpsam": CPSAM,
}

__all__ = [
    "MODELS",
    "DecoderSpec",
    "ModelSpec",
    "OfficialCheckpoint",
    "Preprocessing",
    "model_spec",
]


def model_spec(name: str) -> ModelSpec:
    """The entry of `MODELS` called `name`, or a `UserError` that lists the valid names."""
    if name not in MODELS:
        raise UserError(f"Unknown model {name!r}; available models are {', '.join(MODELS)}.")
    return MODELS[name]
