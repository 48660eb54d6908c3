"""The server as an application: its routes, what every request passes, its start and end."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from structsam_export.serve.about_routes import about_routes
from structsam_export.serve.error_answers import add_error_answers
from structsam_export.serve.image_routes import PHOTOS, image_routes
from structsam_export.serve.middleware import BodyLimit, KnownHosts, Measured
from structsam_export.serve.model_routes import Guard, model_routes
from structsam_export.serve.page import add_page
from structsam_export.serve.refusals import Refusal, Stopping
from structsam_export.serve.service import Service

_SECONDS_TO_END = 5.0  # for warming, and for calls that nobody waits for any more
_BEARER = HTTPBearer(auto_error=False)


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
        except Stopping:
            pass  # the server was told to end before it was ready
        except Exception as error:
            on_failure(error)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warm())  # meanwhile /healthz answers
        yield
        service.refuse_waiting()
        await asyncio.wait((warming,), timeout=_SECONDS_TO_END)
        await run_in_threadpool(service.stop, _SECONDS_TO_END)

    app = FastAPI(
        title="structsam",
        description="Segment Anything: send a photo once, then ask for masks.",
        version=version("structsam"),
        lifespan=life,
    )
    app.add_middleware(BodyLimit, photos=PHOTOS, most=service.settings.max_body_bytes)
    if hosts is not None:
        app.add_middleware(KnownHosts, hosts=hosts)
    app.add_middleware(Measured, measures=service.measures)  # the last one is the first to see it
    add_error_answers(app)
    statuses = (401, 422, 503) if token else (422, 503)
    app.include_router(image_routes(service, _guard(token), statuses))
    app.include_router(model_routes(service.bundle, _guard(token)))
    app.include_router(about_routes(service))
    add_page(app)
    return app


def _guard(token: str | None) -> Guard:
    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
    ) -> None:
        found = "" if given is None else given.credentials
        if token is not None and not hmac.compare_digest(found.encode(), token.encode()):
            raise Refusal(401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`")

    async def open_to_all() -> None:
        return None

    return open_to_all if token is None else check
