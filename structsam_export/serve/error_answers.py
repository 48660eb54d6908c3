"""Errors as clients see them: `{"error": "one sentence"}`, whoever found what is wrong."""

from __future__ import annotations

from math import ceil

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from structsam.errors import UserError
from structsam_export.serve.refusals import Gone, Refusal


def add_error_answers(app: FastAPI) -> None:
    """Give all errors of an application their one form."""
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _mistake)


def error_answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer that says what is wrong."""
    return JSONResponse({"error": message}, status, headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """A user's problem: its status; 422 where none is named."""
    status, headers = 422, {}
    if isinstance(error, Refusal):
        status = error.status
        if error.retry_after is not None:
            headers["Retry-After"] = str(ceil(error.retry_after))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
    return error_answer(status, str(error), headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """A request of another form: the first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    if found["type"] == "json_invalid":  # its place is a character, not a field
        where, what = "the body", f"no JSON ({found['ctx']['error']} at {found['loc'][-1]})"
    else:
        where = ".".join(str(part) for part in found["loc"] if part != "body") or "the body"
        what = found["msg"]
    return error_answer(422, f"{where}: {what}. See /docs")


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework or a middleware refuses."""
    assert isinstance(error, HTTPException)
    said = {
        400: "the body cannot be read: it is no UTF-8, or nested too deeply. See /docs",
        404: f"there is no {request.url.path} here. See /docs",
        405: f"{request.url.path} takes no {request.method}. See /docs",
    }
    headers = None if error.headers is None else dict(error.headers)
    return error_answer(error.status_code, said.get(error.status_code, error.detail), headers)


async def _gone(request: Request, error: Exception) -> JSONResponse:
    """The client left while it sent; nobody reads this, but it is counted."""
    return await _refused(request, Gone())


async def _mistake(_: Request, error: Exception) -> JSONResponse:
    """A mistake in the server, whose log has the traceback."""
    return error_answer(500, "the server made a mistake, and its log says which. Report it")
