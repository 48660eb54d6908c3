"""Clients who leave: their work leaves the queue, and nothing is read for nobody."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.types import Message

from structsam_export.bundle.folder import Bundle
from structsam_export.serve.app import make_app
from structsam_export.serve.service import Service
from structsam_export.serve.settings import ServeSettings


async def ask(app: Any, path: str, body: bytes, leaves: bool, **headers: str) -> int:
    """Return the status of a request by one who leaves once it is sent, or stays."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0

    async def receive() -> Message:
        if messages:
            return messages.pop()
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    named = {"content-type": "application/json", **headers}
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("here", 80),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    if messages:
        assert body == messages[0]["body"] and status == 429  # nothing was read
    return status


class Held:
    """A step of a service that waits until it is let go."""

    def __init__(self, service: Service, worker: str) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.worker = getattr(service, worker)
        self.run, self.calls = self.worker._run, 0
        self.worker._run = self

    def __call__(self, works: Any) -> Any:
        self.calls += 1
        self.began.set()
        assert self.go.wait(60)
        return self.run(works)


@pytest.fixture
def own(tiny_bundle: Bundle) -> Any:
    service = Service(tiny_bundle, "onnxruntime", ServeSettings(queue=1), threads=1)
    yield service
    service.stop(60)


@pytest.mark.parametrize(
    ("what", "worker"), [("masks", "_decoding"), ("everything", "_finding"), ("", "_encoding")]
)
def test_who_leaves_is_not_worked_for(own: Service, photo: bytes, what: str, worker: str) -> None:
    image_id = own.add(photo).result(60).image_id
    asked = {"boxes": [[30, 20, 70, 50]]} if what == "masks" else {"points_per_side": 1}
    body = json.dumps(asked).encode() if what else photo + b"2"
    path = f"/v1/images/{image_id}/{what}" if what else "/v1/images"
    held, app = Held(own, worker), make_app(own)

    async def all_of_them() -> list[int]:
        first = asyncio.create_task(ask(app, path, body if what else photo + b"1", False))
        assert await asyncio.to_thread(held.began.wait, 60)
        try:
            second = await ask(app, path, body, True)
            assert held.worker.waiting == 0
        finally:
            held.go.set()
        return [await first, second]

    assert asyncio.run(all_of_them()) == [200, 499]
    assert held.calls == 1
    assert 'status="499"' in own.measures.text().decode()


def test_a_photo_is_not_kept_where_no_photo_may_wait(own: Service, photo: bytes) -> None:
    held, app = Held(own, "_encoding"), make_app(own)
    try:
        first = own.add(photo + b"1")
        assert held.began.wait(60)
        second = own.add(photo + b"2")
        own.add = None  # type: ignore[assignment, method-assign]
        assert asyncio.run(ask(app, "/v1/images", photo, False)) == 429
        expecting = ask(app, "/v1/images", photo, False, expect="100-continue")
        assert asyncio.run(expecting) == 429
    finally:
        held.go.set()
    first.result(60), second.result(60)


def test_answers_are_not_drawn_for_nobody(
    own: Service, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.serve import image_routes

    async def stays(request: Any, future: Any) -> Any:
        return await asyncio.wrap_future(future)

    image_id = own.add(photo).result(60).image_id
    monkeypatch.setattr(image_routes, "until_gone", stays)  # it leaves after that
    monkeypatch.setattr(image_routes, "masks_answer", None)
    body = json.dumps({"boxes": [[30, 20, 70, 50]]}).encode()
    assert asyncio.run(ask(make_app(own), f"/v1/images/{image_id}/masks", body, True)) == 499
