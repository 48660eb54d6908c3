"""The three models of the Segment Anything release (Kirillov et al., 2023).

Sizes: `build_sam.py` of github.com/facebookresearch/segment-anything. The six hex digits in an
official file name are the first of the file's MD5.
"""

from structsam.models.spec import ModelSpec, OfficialCheckpoint

_URL = "https://dl.fbaipublicfiles.com/segment_anything/"

VIT_B = ModelSpec(
    name="vit_b",
    title="SAM ViT-B",
    embed_dim=768,
    depth=12,
    num_heads=12,
    global_blocks=(2, 5, 8, 11),
    official=OfficialCheckpoint(
        file="sam_vit_b_01ec64.pth",
        url=_URL + "sam_vit_b_01ec64.pth",
        size=375_042_383,
        md5="01ec64d29a2fca3f0661936605ae66f8",
    ),
)

VIT_L = ModelSpec(
    name="vit_l",
    title="SAM ViT-L",
    embed_dim=1024,
    depth=24,
    num_heads=16,
    global_blocks=(5, 11, 17, 23),
    official=OfficialCheckpoint(
        file="sam_vit_l_0b3195.pth",
        url=_URL + "sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        md5="0b3195507c641ddb6910d2bb5adee89c",
    ),
)

VIT_H = ModelSpec(
    name="vit_h",
    title="SAM ViT-H",
    embed_dim=1280,
    depth=32,
    num_heads=16,
    global_blocks=(7, 15, 23, 31),
    official=OfficialCheckpoint(
        file="sam_vit_h_4b8939.pth",
        url=_URL + "sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        md5="4b8939a88964f0f4ff5f5b2642c598a6",
    ),
)
