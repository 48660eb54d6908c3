"""The embedded model: SAM's geometry at a quarter of ViT-B's width (see docs/vit_t.md)."""

from structsam.models.spec import ModelSpec

VIT_T = ModelSpec(
    name="vit_t",
    title="StructSAM ViT-T",
    embed_dim=192,
    depth=12,
    num_heads=3,
    global_blocks=(2, 5, 8, 11),
    embedded="vit_t.safetensors",
    weights_note="its weights come with the package: leave `checkpoint=` out",
)
