"""What every request passes, without a server around it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from structsam_export.serve.middleware import BodyLimit


@pytest.mark.parametrize(("path", "most"), [("/photos", 3 << 20), ("/masks", 2 << 20)])
def test_nothing_is_read_beyond_the_limit(path: str, most: int) -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1 << 19
        return {"type": "http.request", "body": bytes(1 << 19), "more_body": True}

    async def take_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def send(message: Message) -> None: ...

    limit = BodyLimit(take_all, "/photos", 3 << 20)
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": []}
    with pytest.raises(HTTPException, match=f"more than {most >> 20} MiB") as refused:
        asyncio.run(limit(scope, receive, send))
    assert refused.value.status_code == 413 and read == most + (1 << 19)
    read, scope["headers"] = 0, [(b"content-length", str(most + 1).encode())]
    with pytest.raises(HTTPException, match="more than"):
        asyncio.run(limit(scope, receive, send))
    assert read == 0
