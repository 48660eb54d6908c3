"""The server's routes: HTTP in front of `Service`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from structsam.errors import UserError
from structsam_export.predict.embedding_file import to_half
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.serve.error_answers import add_error_answers
from structsam_export.serve.masks_out import masks_answer, read_logits
from structsam_export.serve.measures import CONTENT_TYPE
from structsam_export.serve.middleware import KnownHosts, Measured
from structsam_export.serve.model_routes import model_routes
from structsam_export.serve.page import add_page
from structsam_export.serve.refusals import Refusal
from structsam_export.serve.request_body import read_image_body
from structsam_export.serve.schemas import (
    ErrorAnswer,
    EverythingAnswer,
    EverythingMask,
    EverythingRequest,
    HealthAnswer,
    ImageAnswer,
    MasksAnswer,
    MasksRequest,
)
from structsam_export.serve.service import Service

ImageId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="`id` of POST /v1/images.")]
#: Of the names in `bundle.manifest`.
Feature = Annotated[
    Literal["image_embeddings", "hq_features"], Query(description="The second: of SAM-HQ.")
]
_BEARER = HTTPBearer(auto_error=False)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


def make_app(
    service: Service,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
    on_failure: Callable[[Exception], None] = lambda error: None,
) -> FastAPI:
    """Return the application; its start warms the service, its end stops it.

    Args:
        token: that every request under /v1 must bear; None asks for none.
        hosts: names under which it may be asked for; None for any.
        on_failure: told why the service cannot be warmed.
    """

    async def warm() -> None:
        try:
            await run_in_threadpool(service.warm)
        except Exception as error:
            on_failure(error)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warm())  # meanwhile /healthz answers
        yield
        await warming
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="structsam",
        description="Segment Anything: send a photo once, then ask for masks.",
        version=version("structsam"),
        lifespan=life,
    )
    if hosts is not None:
        app.add_middleware(KnownHosts, hosts=hosts)
    app.add_middleware(Measured, measures=service.measures)  # the last one is the first to see it
    add_error_answers(app)
    app.include_router(_images(service, token))
    app.include_router(model_routes(service.bundle, _guard(token)))
    app.include_router(_about(service))
    add_page(app)
    return app


def _images(service: Service, token: str | None) -> APIRouter:
    router = APIRouter(
        prefix="/v1/images",
        tags=["images"],
        dependencies=[Depends(_guard(token))],
        responses=_errors(401, 422, 503) if token else _errors(422, 503),
    )

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
        data = await read_image_body(request, service.settings.max_body_bytes)
        added = await run_in_threadpool(service.add, data)
        height, width = added.geometry.original_size
        return ImageAnswer(
            id=added.image_id,
            width=width,
            height=height,
            input_size=list(added.geometry.input_size),
            cached=added.cached,
            encode_ms=added.encode_ms,
        )

    @router.post("/{image_id}/masks", summary="Masks of prompts", responses=_errors(404, 429))
    def find_masks(image_id: ImageId, asked: MasksRequest) -> MasksAnswer:
        """Decode points and boxes for a photo that was sent before."""
        most = service.settings.max_prompts
        if max(len(asked.points), len(asked.boxes)) > most:
            raise Refusal(422, f"more than {most} points or boxes. Send them in several requests")
        labels = [1] * len(asked.points) if asked.labels is None else asked.labels
        if len(labels) != len(asked.points):
            raise Refusal(
                422, f"{len(labels)} labels for {len(asked.points)} points. Give one each"
            )
        points = [(x, y, int(label)) for (x, y), label in zip(asked.points, labels, strict=True)]
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in asked.boxes]
        prompts = AskedPrompts(tuple(points), tuple(boxes), all_masks=False)
        multimask = prompts.multimask if asked.multimask is None else asked.multimask
        earlier = None
        if asked.mask_input is not None:
            specs = service.bundle.part("decoder").inputs
            shape = next(spec.shape[1:] for spec in specs if spec.name == "mask_input")
            earlier = read_logits(asked.mask_input, tuple(map(int, shape)))
        found = service.masks(image_id, prompts, multimask, earlier)
        return masks_answer(found, asked.format, asked.best, asked.logits)

    @router.post("/{image_id}/everything", responses=_errors(404, 429))
    def find_everything(image_id: ImageId, asked: EverythingRequest) -> EverythingAnswer:
        """Find a mask of everything, as SAM's automatic mask generator without crops."""
        size = service.image(image_id).geometry.original_size  # it may leave meanwhile
        records, spent = service.everything(image_id, **asked.model_dump())
        masks = [
            EverythingMask(counts=record.pop("segmentation")["counts"], **record)
            for record in records
        ]
        return EverythingAnswer(size=list(size), masks=masks, ms=spent)

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


def _about(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])

    def health() -> HealthAnswer:
        facts = service.describe()
        return HealthAnswer(
            status=service.state,
            bundle=facts["bundle"],
            backend=facts["backend"],
        )

    @router.get("/healthz", summary="It lives")
    def healthz() -> HealthAnswer:
        """Answer 200 as long as the process lives."""
        return health()

    @router.get("/readyz", summary="It can work", responses={503: {"model": HealthAnswer}})
    def readyz(response: Response) -> HealthAnswer:
        """Answer 200 once both networks have run, 503 before and while it stops."""
        if service.state != "ok":
            response.status_code = 503
        return health()

    @router.get("/metrics", summary="For Prometheus", response_class=Response)
    def metrics() -> Response:
        """Queues, latencies, cache hits and bytes in Prometheus' text format."""
        return Response(service.measures.text(), media_type=CONTENT_TYPE)

    return router


def _guard(token: str | None) -> Callable[..., None]:
    def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
    ) -> None:
        found = "" if given is None else given.credentials
        if token is not None and not hmac.compare_digest(found.encode(), token.encode()):
            raise Refusal(401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`")

    def open_to_all() -> None:
        return None

    return open_to_all if token is None else check
