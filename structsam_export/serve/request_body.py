"""The photo in a request's body, never more of it than is allowed."""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from structsam_export.serve.refusals import Refusal

_FIELD = "image"


async def read_image_body(request: Request, most: int) -> bytes:
    """Return the body's bytes, or those of its form field `image`.

    Raises:
        Refusal: more than `most` bytes (nothing beyond them is read), or no photo in the form.
    """
    if int(_length(request)) > most:
        raise _too_large(most)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _field(request, most)
    return await _all(request, most)


def _length(request: Request) -> str:
    text = request.headers.get("content-length", "0")
    return text if text.isdecimal() else "0"


async def _all(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


async def _field(request: Request, most: int) -> bytes:
    async def bounded():  # type: ignore[no-untyped-def]
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _too_large(most)
            yield part

    try:
        form = await MultiPartParser(request.headers, bounded(), max_files=1).parse()
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


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the photo has more than {most >> 20} MiB. Send a smaller file")
