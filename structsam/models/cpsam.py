"""Cellpose-SAM (Pachitariu, Rariden and Stringer, 2025): SAM ViT-L on tiles of microscopy images.

`vit.py` of the package cellpose 4.2 takes the image encoder of segment-anything's ViT-L, with
patches of 8 pixels on tiles of 256, lets every block attend over the whole grid, and reads flows
from the embedding with one convolution of its own. It has no prompts and no mask decoder. Its files
keep SAM's tables of relative positions (27 and 127 rows), stretched to the 63 of its grid in every
call.

Cellpose normalises images itself (percentiles per channel) and cuts them into tiles. What stands
here is what a check of parity feeds the encoder: the photo, stretched to one tile in 0..1.
"""

from structsam.models.spec import ModelSpec, Preprocessing

CPSAM = ModelSpec(
    name="cpsam",
    title="Cellpose-SAM encoder (ViT-L)",
    embed_dim=1024,
    depth=24,
    num_heads=16,
    global_blocks=tuple(range(24)),
    image_size=256,
    patch_size=8,
    preprocessing=Preprocessing(
        name="cpsam",
        image_size=256,
        resize="stretch",
        interpolation="bilinear",
        scaling="min_max",
        mean=None,
        std=None,
        pad=False,
    ),
    decoder=None,
    stretch_positions=True,
    weights_note="the package cellpose fetches its weights: pass the file cpsam as `checkpoint=`",
)
