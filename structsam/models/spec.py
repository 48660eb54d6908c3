"""What describes a SAM-family model without building it: sizes, preprocessing, official file.

Imports no torch, so that the command line and the bundle reader can use it on a bare machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from structsam.errors import UserError

Resize = Literal["long_side", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]
Scaling = Literal["mean_std", "min_max"]
Embedding = Literal["native", "upsample"]
Triple = tuple[float, float, float]

_CHOICES = {
    "resize": get_args(Resize),
    "interpolation": get_args(Interpolation),
    "scaling": get_args(Scaling),
}


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB uint8 image [H, W, 3] becomes the encoder's input [1, 3, S, S], S = image_size.

    resize: `long_side` scales by S / max(H, W) and rounds each side as int(x * scale + 0.5);
    `stretch` ignores the aspect and gives S x S.
    scaling: `mean_std` is (x - mean) / std per channel with x in 0..255; `min_max` is
    (x - min) / max(max - min, 1e-8) over the whole resized image, so the values fill [0, 1].
    pad: fill with zeros at the right and bottom up to S x S, after the scaling.
    """

    name: str
    image_size: int
    resize: Resize
    interpolation: Interpolation
    scaling: Scaling
    mean: Triple | None
    std: Triple | None
    pad: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types for the manifest's JSON; `from_dict` reads them back."""
        values = asdict(self)
        for key in ("mean", "std"):
            values[key] = None if values[key] is None else list(values[key])
        return values

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        remedy: str = "update structsam, or export the bundle again",
    ) -> Preprocessing:
        """Read what `to_dict` wrote. Raises `UserError` naming the field that does not fit."""
        names = [field.name for field in fields(cls)]
        found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        if found != sorted(names):
            raise UserError(
                f"Preprocessing has the fields {found}, expected {sorted(names)}: "
                "this manifest comes from another version; export the bundle again."
            )

        def misfit(key: str, expected: str) -> UserError:
            return UserError(
                f"Preprocessing field '{key}' is {values[key]!r}, expected {expected}: {remedy}."
            )

        for key, choices in _CHOICES.items():
            if values[key] not in choices:
                raise misfit(key, f"one of {choices}")
        side = values["image_size"]
        if type(side) is not int or side < 1:
            raise misfit("image_size", "a number of pixels")
        if values["resize"] == "long_side" and values["pad"] is not True:
            raise misfit("pad", "true, as 'long_side' cannot fill the square input")
        triples: dict[str, Triple | None] = {}
        for key in ("mean", "std"):
            try:
                triples[key] = _triple(values[key])
            except (TypeError, ValueError):
                raise misfit(key, "three numbers or null") from None
            if values["scaling"] == "mean_std" and triples[key] is None:
                raise misfit(key, "three numbers, as 'mean_std' takes both")
        if triples["std"] and min(triples["std"]) <= 0:
            raise misfit("std", "three numbers above 0")
        return cls(**{**values, **triples})


def _triple(value: Any) -> Triple | None:
    """Three finite numbers, or None. Raises `TypeError` or `ValueError`."""
    if value is None:
        return None
    first, second, third = (float(v) for v in value)
    if not all(map(math.isfinite, (first, second, third))):
        raise ValueError("not finite")
    return first, second, third


SAM_PREPROCESSING = Preprocessing(
    name="sam",
    image_size=1024,
    resize="long_side",
    interpolation="bilinear",
    scaling="mean_std",
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    pad=True,
)


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A published weight file: `size` in bytes, `md5` in lower-case hex."""

    file: str
    url: str
    size: int
    md5: str


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of the mask decoder; those of every published SAM by default.

    depth, num_heads, mlp_dim: of its two-way transformer. score_dim: hidden width of the head that
    predicts a mask's IoU. hq: that of SAM-HQ, see `sam_hq.py`.
    """

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    score_dim: int = 256
    hq: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """The geometry of a segment-anything ViT, and where its weights come from.

    global_blocks: indices of the blocks with global attention; the others attend within windows
    of window_size x window_size tokens. image_size and patch_size are in pixels.
    weights_note: where to get weights, for a model with no official file.
    embedded: name of the weight file that comes with the package, for a model that has one.
    trained_image_size, embedding: of a model at another input size than that of its weights, see
    `image_size.resized`; None where it is the same.
    channels: of the image embedding. decoder: None for a model that is an image encoder alone.
    stretch_positions: its checkpoints may hold tables of relative positions of any length, which
    SAM's `get_rel_pos` stretches in every call; they are resized once, at load.
    """

    name: str
    title: str
    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window_size: int = 14
    image_size: int = 1024
    patch_size: int = 16
    preprocessing: Preprocessing = SAM_PREPROCESSING
    official: OfficialCheckpoint | None = None
    weights_note: str = ""
    embedded: str | None = None
    trained_image_size: int | None = None
    embedding: Embedding = "native"
    channels: int = 256
    decoder: DecoderSpec | None = DecoderSpec()
    stretch_positions: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of {self.num_heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.patch_size}")
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks {self.global_blocks} outside 0..{self.depth - 1}")
        if self.hq and not self.global_blocks:
            raise ValueError("global_blocks is empty, and SAM-HQ reads the first of them")
        # the decoder's attention halves the channels, its upscaling leaves an eighth of them
        if self.decoder and (self.channels % 8 or self.channels % (2 * self.decoder.num_heads)):
            heads = self.decoder.num_heads
            raise ValueError(
                f"channels {self.channels} is no multiple of 8 and of 2 x {heads} heads"
            )
        if self.preprocessing.image_size != self.image_size:
            resized = replace(self.preprocessing, image_size=self.image_size)
            object.__setattr__(self, "preprocessing", resized)

    @property
    def window_sizes(self) -> tuple[int, ...]:
        """Side of every block's windows in tokens, 0 where it attends over the whole grid."""
        return tuple(
            0 if index in self.global_blocks else self.window_size for index in range(self.depth)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """The token grid (H, W) of the encoder, (64, 64) for SAM."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def trained(self) -> ModelSpec:
        """The model at the input size of its weights; itself unless it is resized."""
        if self.trained_image_size is None:
            return self
        size = self.trained_image_size
        return replace(self, image_size=size, trained_image_size=None, embedding="native")

    @property
    def embedding_grid(self) -> tuple[int, int]:
        """The image embedding's (height, width): the grid, or with `upsample` the trained one."""
        return self.trained.grid if self.embedding == "upsample" else self.grid

    @property
    def hq(self) -> bool:
        """Whether this is a SAM-HQ, whose encoder gives a second feature map."""
        return self.decoder is not None and self.decoder.hq

    @property
    def geometry_text(self) -> str:
        """Its sizes for people: `768 wide, 12 blocks (2, 5, 8, 11 global), 12 heads, ...`."""
        whole = ", ".join(map(str, self.global_blocks)) or "none"
        if len(self.global_blocks) == self.depth:
            blocks = "all global"
        else:
            blocks = f"{whole} global, the others in windows of {self.window_size}"
        masks = (", SAM-HQ" if self.hq else "") if self.decoder else ", no decoder"
        return (
            f"{self.embed_dim} wide, {self.depth} blocks ({blocks}), {self.num_heads} heads, "
            f"patches of {self.patch_size} on {self.image_size} pixels{masks}"
        )

    @property
    def label(self) -> str:
        """The name, with the input size where it is another: `vit_b`, `vit_b-896up`."""
        return f"{self.name}{self.size_suffix}"

    @property
    def size_suffix(self) -> str:
        """How names tell the input size: nothing at the trained one, else `-896` or `-896up`."""
        if self.trained_image_size is None:
            return ""
        return f"-{self.image_size}{'up' if self.embedding == 'upsample' else ''}"

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.embed_dim // self.num_heads

    def require_decoder(self, why: str) -> None:
        """Raise a `UserError` for an encoder alone; `why` says what a decoder is needed for."""
        if self.decoder is None:
            raise UserError(
                f"{self.name} is an image encoder without a mask decoder, and {why}. Use a model "
                "that has one"
            )

    @property
    def embedded_weights(self) -> Path | None:
        """The weight file that comes with the package, or None."""
        return Path(__file__).parent / "weights" / self.embedded if self.embedded else None

    @property
    def how_to_get_weights(self) -> str:
        """One clause for an error message."""
        if self.official is None:
            return self.weights_note or f"no official checkpoint of {self.name} exists"
        return f"fetch {self.official.file} with `structsam-export download {self.name}`"
