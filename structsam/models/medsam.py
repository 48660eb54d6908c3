"""MedSAM (Ma et al., 2024): SAM ViT-B fine-tuned on medical images, with its own preprocessing.

`MedSAM_Inference.py` of github.com/bowang-lab/MedSAM resizes with scikit-image (order 3,
anti-aliased) and truncates to uint8; Pillow's bicubic is of the same degree, not bit-equal to it.
`SamPredictor` always applies SAM's own preprocessing and therefore does not fit this model.
"""

from dataclasses import replace

from structsam.models.segment_anything_vit import VIT_B
from structsam.models.spec import Preprocessing

MEDSAM = replace(
    VIT_B,
    name="medsam",
    title="MedSAM ViT-B",
    preprocessing=Preprocessing(
        name="medsam",
        image_size=1024,
        resize="stretch",
        interpolation="bicubic",
        scaling="min_max",
        mean=None,
        std=None,
        pad=False,
    ),
    official=None,
    weights_note=(
        "MedSAM has no stable direct link: take medsam_vit_b.pth from the checkpoint link in the "
        "README of https://github.com/bowang-lab/MedSAM and pass it with `checkpoint=`"
    ),
)
