"""The photo in a request's body."""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from structsam_export.serve.refusals import Refusal

_FIELD = "image"


async def read_image_body(request: Request) -> bytes:
    """Return the body's bytes, or those of its form field `image`; `BodyLimit` bounds them.

    Raises:
        Refusal: no photo in the form.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _field(request)
    return await request.body()


async def drop_body(request: Request) -> None:
    """Take the body and keep nothing of it: clients that still send would not read an answer.

    One who asked whether to send (`Expect: 100-continue`, as curl does) need not.
    """
    if request.headers.get("expect", "").lower() != "100-continue":
        async for _ in request.stream():
            pass


async def _field(request: Request) -> bytes:
    try:
        form = await MultiPartParser(request.headers, request.stream(), max_files=1).parse()
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, AssertionError) as error:
        raise Refusal(400, f"the form cannot be read: {error}") from None
    upload = form.get(_FIELD)
    if not isinstance(upload, UploadFile):
        raise Refusal(400, f"the form has no file in the field {_FIELD!r}. Send the photo there")
    try:
        return await upload.read()
    finally:
        await form.close()
