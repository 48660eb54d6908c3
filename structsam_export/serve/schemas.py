"""The JSON of requests and answers; OpenAPI shows it with these examples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from structsam_export.serve.settings import MOST_PROMPTS

Number = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]
MaskFormat = Literal["rle", "png", "bits"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageAnswer(BaseModel):
    """A photo that is kept now."""

    id: str = Field(description="Of its content; all other routes take it.")
    width: int
    height: int
    input_size: list[int] = Field(
        description="[height, width] of the photo in the encoder's input; prompts are scaled so."
    )
    cached: bool = Field(description="It had been encoded before.")
    encode_ms: float


class MasksRequest(_Strict):
    """Prompts for one photo: all points together are one prompt, every box is one of its own."""

    points: list[Point] = Field(
        [], max_length=MOST_PROMPTS, description="[x, y] in pixels of the photo."
    )
    labels: list[Literal[0, 1]] | None = Field(
        None,
        max_length=MOST_PROMPTS,
        description="Of the points: 1 object (also where it is left out), 0 background.",
    )
    boxes: list[Box] = Field(
        [], max_length=MOST_PROMPTS, description="[x0, y0, x1, y1] in pixels of the photo."
    )
    multimask: bool | None = Field(
        None, description="Three masks of every prompt; left out: for a single point only."
    )
    best: bool = Field(False, description="Of several masks only that of the highest score.")
    mask_input: str | None = Field(
        None, description="`logits` of an earlier answer, to refine that mask."
    )
    format: MaskFormat = Field(
        "rle", description="COCO's run lengths; a PNG of 0 and 255; or bits, row by row."
    )
    logits: bool = Field(False, description="Answer the logits as well, for `mask_input`.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"points": [[450, 300]], "labels": [1], "best": True},
                {"boxes": [[100, 50, 400, 300]], "format": "png"},
            ]
        },
    )


class Mask(BaseModel):
    """One mask in the size of the photo."""

    prompt: int = Field(description="Of which prompt, in the order given.")
    score: float = Field(description="Its IoU as predicted by the decoder.")
    area: int = Field(description="In pixels.")
    counts: str | None = Field(None, description="COCO's compressed run lengths (`rle`).")
    data: str | None = Field(None, description="Base64 of the PNG or of the packed bits.")
    logits: str | None = Field(None, description="Base64 of FP16 [h, w].")


class MasksAnswer(BaseModel):
    """Masks of all prompts."""

    size: list[int] = Field(description="[height, width] of every mask.")
    format: MaskFormat
    masks: list[Mask]
    decode_ms: float
    upscale_ms: float = Field(description="Of upscaling and writing the masks.")


class EverythingRequest(_Strict):
    """Settings of SAM's automatic mask generator, with its names and defaults."""

    points_per_side: int = Field(32, ge=1, le=128)
    pred_iou_thresh: Number = Field(0.88, ge=0, le=1)
    stability_score_thresh: Number = Field(0.95, ge=0, le=1)
    box_nms_thresh: Number = Field(0.7, ge=0, le=1)
    min_mask_region_area: int = Field(0, ge=0)


class EverythingMask(BaseModel):
    """One mask that was found."""

    counts: str = Field(description="COCO's compressed run lengths.")
    area: int
    bbox: list[float] = Field(description="[x, y, width, height].")
    predicted_iou: float
    stability_score: float
    point_coords: list[list[float]]
    crop_box: list[float] = Field(description="[x, y, width, height] that it was found in.")


class EverythingAnswer(BaseModel):
    """All masks that were found."""

    size: list[int]
    masks: list[EverythingMask]
    ms: float


class DecoderFile(BaseModel):
    """The decoder's ONNX file, as GET /v1/model/decoder.onnx gives it."""

    size: int = Field(description="In bytes.")
    sha256: str


class ModelAnswer(BaseModel):
    """What a client needs that decodes by itself."""

    bundle: str
    image_size: int = Field(description="Side of the encoder's input.")
    mask_size: list[int] = Field(description="[h, w] of `mask_input`.")
    max_points: int = Field(
        description="Of a prompt; a box counts as 2, a prompt without a box has one more."
    )
    upsample_probabilities: bool = Field(
        description="Masks are upscaled as probabilities in one step (MedSAM), not as logits "
        "through the encoder's input (SAM)."
    )
    decoder: DecoderFile | None = Field(description="None where it cannot run elsewhere.")
    why_not: str | None = Field(description="Why it cannot.")


class ErrorAnswer(BaseModel):
    """Why there is no result."""

    error: str


class HealthAnswer(BaseModel):
    """Whether it lives, and what serves."""

    status: Literal["ok", "starting", "stopping"]
    bundle: str
    backend: str
