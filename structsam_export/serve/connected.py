"""Work for clients who are still there."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from starlette.requests import Request

from structsam_export.serve.refusals import Gone

T = TypeVar("T")


async def until_gone(request: Request, future: Future[T]) -> T:
    """Return a future's result; when the client leaves first, cancel it.

    Args:
        request: of which the body has been read.

    Raises:
        Gone: the client has left.
    """
    asked, gone = asyncio.wrap_future(future), asyncio.ensure_future(_leaves(request))
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise Gone
        return asked.result()
    finally:  # also when the server drops the request
        future.cancel()
        gone.cancel()


async def _leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
