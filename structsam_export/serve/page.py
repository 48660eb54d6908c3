"""The page to click in, and the files that it needs: all come from this package."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

if TYPE_CHECKING:
    from importlib.abc import Traversable

_FOLDER = files("structsam_export") / "assets" / "page"
_KINDS = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
}
_GZIP = ".gz"
_SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "script-src 'self' 'wasm-unsafe-eval'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Answer / with the page, and /page/... with its files."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse((_FOLDER / "index.html").read_text("utf-8"), headers=_SAFE)

    _add_folder(app, _FOLDER, "/page")


def _add_folder(app: FastAPI, folder: Traversable, path: str) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = entry.name.removesuffix(_GZIP)
        suffix = name[name.rfind(".") :]
        if entry.is_dir():
            _add_folder(app, entry, f"{path}/{entry.name}")
        elif suffix in _KINDS:
            _add_file(app, entry, f"{path}/{name}", _KINDS[suffix])


def _add_file(app: FastAPI, file: Traversable, path: str, kind: str) -> None:
    packed = file.name.endswith(_GZIP)

    @cache
    def read() -> tuple[bytes, str]:
        data = file.read_bytes()
        return data, f'"{hashlib.sha256(data).hexdigest()}"'

    @app.get(path, include_in_schema=False)
    def content(request: Request) -> Response:
        data, tag = read()
        headers = {**_SAFE, "ETag": tag, "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if packed and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        elif packed:
            data = gzip.decompress(data)
        return Response(data, media_type=kind, headers=headers)
