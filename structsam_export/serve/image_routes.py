"""The routes of photos: send one, and ask for its masks."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import run_in_threadpool

from structsam.errors import UserError
from structsam_export.predict.embedding_file import to_half
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.serve.connected import until_gone
from structsam_export.serve.drawing import Drawing
from structsam_export.serve.found import FoundMasks
from structsam_export.serve.masks_out import (
    everything_answer,
    masks_answer,
    read_logits,
    require_small_answer,
)
from structsam_export.serve.model_routes import Guard
from structsam_export.serve.refusals import Busy, Refusal
from structsam_export.serve.request_body import drop_body, read_image_body
from structsam_export.serve.schemas import (
    ErrorAnswer,
    EverythingAnswer,
    EverythingRequest,
    ImageAnswer,
    MasksAnswer,
    MasksRequest,
)
from structsam_export.serve.service import Service

PHOTOS = "/v1/images"
ImageId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="`id` of POST /v1/images.")]
#: Of the names in `bundle.manifest`.
Feature = Annotated[
    Literal["image_embeddings", "hq_features"], Query(description="The second: of SAM-HQ.")
]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


def image_routes(service: Service, guard: Guard, error_statuses: tuple[int, ...]) -> APIRouter:
    """Return the routes below /v1/images.

    Args:
        guard: lets in whom it does not refuse.
        error_statuses: that every route may answer.
    """
    router = APIRouter(
        prefix=PHOTOS,
        tags=["images"],
        dependencies=[Depends(guard)],
        responses=_errors(*error_statuses),
    )
    drawing = Drawing(service.settings.prompts_waiting)

    @router.post(
        "",
        summary="Send a photo",
        responses=_errors(400, 413, 429),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["image"],
                            "properties": {"image": {"type": "string", "format": "binary"}},
                        }
                    },
                },
            }
        },
    )
    async def add_image(request: Request) -> ImageAnswer:
        """Encode a photo once: the file's bytes as the body, or a form with the field `image`."""
        try:
            service.require_room()
        except Busy:  # the file need not be kept for that
            await drop_body(request)
            raise
        adding = await run_in_threadpool(service.add, await read_image_body(request))
        added = await until_gone(request, adding)
        height, width = added.geometry.original_size
        return ImageAnswer(
            id=added.image_id,
            width=width,
            height=height,
            input_size=list(added.geometry.input_size),
            cached=added.cached,
            encode_ms=added.encode_ms,
        )

    @router.post(
        "/{image_id}/masks",
        summary="Masks of prompts",
        response_model=MasksAnswer,
        responses=_errors(400, 404, 413, 429),
    )
    async def find_masks(request: Request, image_id: ImageId, asked: MasksRequest) -> Response:
        """Decode points and boxes for a photo that was sent before."""
        drawing.require_room()
        finding = await run_in_threadpool(_ask, service, image_id, asked)
        found = await until_gone(request, finding)
        return await drawing.run(
            request, lambda: _json(masks_answer(found, asked.format, asked.best, asked.logits))
        )

    @router.post(
        "/{image_id}/everything",
        response_model=EverythingAnswer,
        responses=_errors(400, 404, 413, 429),
    )
    async def find_everything(
        request: Request, image_id: ImageId, asked: EverythingRequest
    ) -> Response:
        """Find a mask of everything, as SAM's automatic mask generator without crops."""
        drawing.require_room()
        finding = await run_in_threadpool(service.everything, image_id, **asked.model_dump())
        found = await until_gone(request, finding)
        return await drawing.run(request, lambda: _json(everything_answer(found)))

    @router.get(
        "/{image_id}/embedding",
        summary="The embedding, or another feature map",
        response_class=Response,
        responses={
            200: {"content": {"application/octet-stream": {}}, "description": "FP16, row-major"},
            **_errors(404, 409),
        },
    )
    def embedding(image_id: ImageId, feature: Feature = "image_embeddings") -> Response:
        """Give what the decoder takes as FP16, little endian; its shape is in `X-Shape`."""
        found = service.image(image_id).features
        if found is None:
            raise Refusal(
                409, "this bundle is prompt-aware: it has an embedding for every box, none alone"
            )
        if feature not in found:
            raise Refusal(409, f"this bundle's encoder gives no {feature}: it is no SAM-HQ")
        try:
            half = to_half({feature: found[feature].numpy()}, "Let the server find the masks")
        except UserError as error:
            raise Refusal(409, str(error)) from None
        array = half[feature]
        return Response(
            array.astype("<f2").tobytes(),
            media_type="application/octet-stream",
            headers={"X-Shape": ",".join(map(str, array.shape)), "X-Dtype": "float16"},
        )

    @router.delete("/{image_id}", status_code=204, summary="Forget a photo", responses=_errors(404))
    def forget(image_id: ImageId) -> None:
        """Drop what is kept of a photo, in memory and on disk."""
        service.remove(image_id)

    return router


def _json(answer: BaseModel) -> Response:
    """Return a response that is ready: FastAPI would write it where all requests wait."""
    return Response(TypeAdapter(type(answer)).dump_json(answer), media_type="application/json")


def _ask(service: Service, image_id: str, asked: MasksRequest) -> Future[FoundMasks]:
    """Let prompts wait for the decoder, unless they make no sense or the answer grows too large."""
    settings = service.settings
    if max(len(asked.points), len(asked.boxes)) > settings.max_prompts:
        raise Refusal(
            422, f"more than {settings.max_prompts} points or boxes. Send them in several requests"
        )
    labels = [1] * len(asked.points) if asked.labels is None else asked.labels
    if len(labels) != len(asked.points):
        raise Refusal(422, f"{len(labels)} labels for {len(asked.points)} points. Give one each")
    points = [(x, y, int(label)) for (x, y), label in zip(asked.points, labels, strict=True)]
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in asked.boxes]
    prompts = AskedPrompts(tuple(points), tuple(boxes), all_masks=False)
    multimask = prompts.multimask if asked.multimask is None else asked.multimask
    found = max(1, len(boxes)) * (3 if multimask else 1)
    if found > max(3, settings.max_prompts):
        raise Refusal(
            422,
            f"three masks of each of {len(boxes)} boxes are more than {settings.max_prompts}. Send "
            "them in several requests, or without `multimask`",
        )
    specs = service.bundle.part("decoder").inputs
    shape = tuple(int(n) for spec in specs if spec.name == "mask_input" for n in spec.shape[1:])
    require_small_answer(
        service.image(image_id).geometry.original_size,
        max(1, len(boxes)) if asked.best else found,
        int(np.prod(shape)) if asked.logits else 0,
        settings.max_answer_pixels,
    )
    earlier = None if asked.mask_input is None else read_logits(asked.mask_input, shape)
    return service.masks(image_id, prompts, multimask, earlier)
