"""The decoder for browsers: what it is, and its file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import FileResponse

from structsam_export.bundle.folder import Bundle
from structsam_export.serve.refusals import Refusal
from structsam_export.serve.schemas import DecoderFile, ErrorAnswer, ModelAnswer

#: Raises for whom it does not let in; without a thread, which others may wait for.
Guard = Callable[..., Awaitable[None]]
_INPUTS = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"}
_OUTPUTS = {"low_res_masks", "iou_predictions"}


def model_routes(bundle: Bundle, guard: Guard) -> APIRouter:
    """Return the routes below /v1/model, for whom `guard` lets in."""
    router = APIRouter(
        prefix="/v1/model",
        tags=["model"],
        dependencies=[Depends(guard)],
        responses={401: {"model": ErrorAnswer}, 422: {"model": ErrorAnswer}},
    )
    answer = describe_model(bundle)

    @router.get("", summary="What serves")
    def model() -> ModelAnswer:
        """Say what a client needs that decodes by itself."""
        return answer

    @router.get(
        "/decoder.onnx",
        summary="The decoder",
        response_class=Response,
        responses={
            200: {"content": {"application/octet-stream": {}}, "description": "ONNX"},
            304: {"description": "`If-None-Match` names the decoder that is here"},
            404: {"model": ErrorAnswer},
        },
    )
    def decoder(if_none_match: str = Header("")) -> Response:
        """Give the decoder's ONNX file; its `ETag` is the SHA-256."""
        if answer.decoder is None:
            raise Refusal(404, f"no decoder for browsers here: {answer.why_not}")
        tag = f'"{answer.decoder.sha256}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if tag in if_none_match:
            return Response(status_code=304, headers=headers)
        return FileResponse(
            bundle.onnx_path("decoder"), media_type="application/octet-stream", headers=headers
        )

    return router


def describe_model(bundle: Bundle) -> ModelAnswer:
    """Return what `GET /v1/model` answers."""
    part = bundle.part("decoder")
    reason = why_not_in_browsers(bundle)
    how = bundle.preprocessing
    return ModelAnswer(
        bundle=bundle.name,
        image_size=how.image_size,
        upsample_probabilities=how.resize == "stretch",
        max_points=part.profile["K"][2] if "K" in part.profile else 0,
        mask_size=[int(s) for spec in part.inputs if spec.name == "mask_input"
                   for s in spec.shape[-2:]],
        decoder=None if reason else DecoderFile(**vars(bundle.files[part.file])),
        why_not=reason,
    )  # fmt: skip


def why_not_in_browsers(bundle: Bundle) -> str | None:
    """Return None where the decoder is one that the page can feed, else the reason."""
    part = bundle.part("decoder")
    if bundle.takes_box:
        return "this bundle is prompt-aware: the encoder runs for every box"
    if {s.name for s in part.inputs} != _INPUTS or not {s.name for s in part.outputs} >= _OUTPUTS:
        return "it takes more than an embedding and prompts"
    if any(spec.dtype != "float32" for spec in (*part.inputs, *part.outputs)):
        return "its inputs are not float32"
    if part.profile["P"][0] > 1:
        return f"it takes {part.profile['P'][0]} prompts at least"
    if part.file not in bundle.files:
        return "the bundle has no SHA-256 of its file"
    if f"{part.file}.data" in bundle.files:
        return "its weights lie in a second file"
    return None
