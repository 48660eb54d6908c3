"""The embedded model: SAM's geometry at a quarter of ViT-B's width, for boards and phones."""

from structsam.models.spec import ModelSpec

VIT_T = ModelSpec(
    name="vit_t",
    title="StructSAM ViT-T",
    embed_dim=192,
    depth=12,
    num_heads=3,
    global_blocks=(2, 5, 8, 11),
    weights_note=(
        "no weights of vit_t are published yet: pass a checkpoint you trained with --checkpoint, "
        "or --weights random to try the pipeline"
    ),
)
