"""The page to click in, and the files that it needs: all come from this package."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

_FOLDER = files("structsam_export") / "assets" / "page"
_KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
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

    for file in sorted(_FOLDER.iterdir(), key=lambda file: file.name):
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _KINDS:
            _add_file(app, file.name, _KINDS[suffix])


def _add_file(app: FastAPI, name: str, kind: str) -> None:
    @app.get(f"/page/{name}", include_in_schema=False)
    def content() -> Response:
        return Response((_FOLDER / name).read_bytes(), media_type=kind, headers=_SAFE)
