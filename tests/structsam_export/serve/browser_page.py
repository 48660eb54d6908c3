"""What tests of the page share: a server that can go away, the page in a browser, the canvas."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.bundle.folder import Bundle

SIZE = (96, 128)
#: Whether the canvas of masks is on at the middle of every pixel of a photo of that size.
READ = """([rows, columns]) => {
  const canvas = document.getElementById("masks"), { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const on = [];
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const row = Math.floor((y + 0.5) * height / rows);
      on.push(data[4 * (row * width + Math.floor((x + 0.5) * width / columns)) + 3] > 0 ? 1 : 0);
    }
  }
  return on;
}"""


class Server:
    """A server in a thread, which can go away and come back at the same port."""

    def __init__(self, bundle: Bundle, token: str | None = None) -> None:
        self.bundle, self.token, self.port = bundle, token, 0
        self.start()

    def start(self) -> None:
        import uvicorn

        from structsam_export.serve.app import make_app
        from structsam_export.serve.run import _listen
        from structsam_export.serve.service import Service

        service = Service(self.bundle, "onnxruntime", threads=1)
        config = uvicorn.Config(make_app(service, self.token), log_level="error")
        listener = _listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def page_at(
    browser: Any, server: Server, width: int = 1000, decoder: str = "server"
) -> Iterator[Any]:
    """Yield the page; nothing may go wrong in its scripts, and nothing may come from elsewhere.

    Args:
        decoder: `server`, or `browser` as it is when a user opens it.
    """
    page = browser.new_page(viewport={"width": width, "height": 700})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.address, "blob:", "data:"))
            else wrong.append(request.url)
        ),
    )
    page.goto(server.address)
    if decoder == "server":
        page.locator("#here").uncheck()
    yield page
    page.close()
    assert wrong == []


def choose(page: Any, photo: Path) -> None:
    page.set_input_files("#file", str(photo))
    said(page, "encoded in|known already")


def said(page: Any, pattern: str) -> str:
    from playwright.sync_api import expect

    text = page.locator("#status")
    expect(text).to_have_text(re.compile(pattern), timeout=60_000)
    return str(text.inner_text())


def click(page: Any, x: float, y: float, **more: Any) -> None:
    """Click a place of the photo, in its pixels."""
    box = page.locator("#masks").bounding_box()
    position = {"x": x * box["width"] / SIZE[1], "y": y * box["height"] / SIZE[0]}
    page.locator("#masks").click(position=position, **more)


def canvas_mask(page: Any) -> np.ndarray:
    """Return what is on, dots and boxes as well, in the photo's size."""
    return np.array(page.evaluate(READ, list(SIZE)), bool).reshape(SIZE)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def downloaded(page: Any, button: str) -> bytes:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()
