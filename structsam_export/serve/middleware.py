"""What every request passes before its route: measured, its host looked at, its body counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from structsam_export.serve.error_answers import error_answer
from structsam_export.serve.measures import Measures

#: Of a body that is no photo: 10000 points and a mask of earlier fit, and it is read at once.
_JSON_BYTES = 2 << 20


class Measured:
    """Counts answers by route and status, and how long they took."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            known = scope["method"] if route != "none" else "none"
            self._measures.requests.labels(known, route, str(status)).inc()
            self._measures.latency.labels(known, route).observe(time.perf_counter() - start)


class KnownHosts:
    """Refuses requests for other names: a page elsewhere could have its name point here.

    Args:
        hosts: as `TrustedHostMiddleware` takes them, which decides.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, list(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        known = False

        async def note(*_: object) -> None:
            nonlocal known
            known = True

        async def drop(_: Message) -> None:
            """Its refusal is plain text."""

        decide = TrustedHostMiddleware(note, self._hosts, www_redirect=False)
        await decide(scope, receive, drop)
        answer: ASGIApp = self._app if known else error_answer(
            400, f"this server does not answer to that name. Ask for {self._hosts[0]}"
        )  # fmt: skip
        await answer(scope, receive, send)


class BodyLimit:
    """Counts the bytes of bodies as they are read, and refuses (413) what is beyond the limit.

    Args:
        photos: path to which photos are sent.
        most: bytes that a photo's request may have; others may have 2 MiB.
    """

    def __init__(self, app: ASGIApp, photos: str, most: int) -> None:
        self._app, self._photos, self._most = app, photos, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_photo = scope["path"] == self._photos
        most = self._most if is_photo else _JSON_BYTES
        told = Headers(scope=scope).get("content-length", "")
        size = int(told) if told.isdecimal() else 0  # none is told of what comes in chunks

        def require_few(size: int) -> None:
            if size > most:  # an HTTPException passes where FastAPI reads JSON
                advice = "Send a smaller file" if is_photo else "Send fewer prompts a request"
                raise HTTPException(413, f"the body has more than {most >> 20} MiB. {advice}")

        seen = 0

        async def counted() -> Message:
            nonlocal seen
            require_few(size)
            message = await receive()
            seen += len(message.get("body", b""))
            require_few(seen)
            return message

        await self._app(scope, counted, send)
