"""A SAM at another input size: which sizes there are, and the model's description at one of them.

SAM is trained at 1024 pixels, a grid of 64 x 64 tokens. At another size the position embedding and
the tables of the global blocks are resized once, when weights are loaded; windows stay as they are.

`native`: the embedding is as small as the grid, the decoder works on it, and gives masks of four
times its side. `upsample`: the encoder ends with a bilinear step to the trained grid, so that the
embedding fits every decoder made for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from structsam.errors import UserError
from structsam.models.spec import Embedding, ModelSpec

#: Smallest side in pixels; models of tests are trained at less.
SMALLEST = 256
#: Largest side: the graphs of all methods keep to the export rules up to it; not tried above.
LARGEST = 2048

EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)


def resized(
    spec: ModelSpec, image_size: int | None = None, embedding: Embedding = "native"
) -> ModelSpec:
    """Describe the model at another input size; at the trained one the model itself.

    Args:
        image_size: side of the square input in pixels; None leaves the model as it is.
        embedding: `native` or `upsample`, see the module.

    Raises:
        UserError: a size or a form that there is not.
    """
    if embedding not in EMBEDDINGS:
        raise UserError(f"unknown embedding {embedding!r}. Use one of: {', '.join(EMBEDDINGS)}")
    if image_size is None:
        return spec
    trained = spec.trained
    _require_size(image_size, trained)
    if image_size == trained.image_size:
        return trained
    size = trained.image_size
    return replace(trained, image_size=image_size, trained_image_size=size, embedding=embedding)


def read_image_size(text: str) -> int:
    """Read a side as typed; raises `UserError` where it is no whole number."""
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"image size {text!r} is no whole number of pixels. Use a multiple of the patch (16 in "
            f"SAM) from {SMALLEST} to {LARGEST}, such as 1024, 896 or 768"
        ) from None


def _require_size(image_size: Any, trained: ModelSpec) -> None:
    step = trained.patch_size
    least = -(-min(SMALLEST, trained.image_size) // step) * step
    most = max(LARGEST, trained.image_size) // step * step
    rule = f"a multiple of {step} from {least} to {most}"
    if not isinstance(image_size, int) or isinstance(image_size, bool):
        raise UserError(
            f"image size {image_size!r} is no whole number of pixels. Use {rule}, such as "
            f"{trained.image_size}"
        )
    if image_size % step == 0 and least <= image_size <= most:
        return
    below = min(max(image_size // step * step, least), most)
    above = min(max(-(-image_size // step) * step, least), most)
    nearest = " or ".join(f"`image_size={side}`" for side in sorted({below, above}))
    raise UserError(f"image size {image_size} is not {rule}. Use {nearest}")
