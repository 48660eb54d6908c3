"""The three models of SAM-HQ (Ke et al., 2023): SAM's encoders, and a decoder with an HQ token.

Its light version has another encoder, TinyViT, whose blocks hold convolutions: it is none of these.
"""

from dataclasses import replace

from structsam.models.segment_anything_vit import VIT_B, VIT_H, VIT_L
from structsam.models.spec import DecoderSpec, ModelSpec


def _with_hq_token(sam: ModelSpec) -> ModelSpec:
    size = sam.name.removeprefix("vit_")
    return replace(
        sam,
        name=f"{sam.name}_hq",
        title=f"SAM-HQ ViT-{size.upper()}",
        decoder=DecoderSpec(hq=True),
        official=None,
        weights_note=(
            f"take sam_hq_vit_{size}.pth from the checkpoint links in the README of "
            "https://github.com/SysCV/sam-hq and pass it with `checkpoint=`"
        ),
    )


VIT_B_HQ, VIT_L_HQ, VIT_H_HQ = map(_with_hq_token, (VIT_B, VIT_L, VIT_H))
