"""Fetches an official checkpoint so that a broken line or a wrong file never passes for a good one.

Bytes go to FILE.part and are renamed to FILE only after size and MD5 are right. Standard library
only: a machine without torch can download.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from structsam.errors import UserError
from structsam.models import model_spec
from structsam.models.checkpoint_file import hash_file

Progress = Callable[[int, "int | None"], None]

_CHUNK = 1 << 20


def download(
    model: str,
    directory: str | Path,
    url: str | None = None,
    *,
    md5: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch the official checkpoint of `model` into `directory` and return its path.

    A valid file already there is returned at once; an interrupted download goes on where it
    stopped. A mirror given as `url` must deliver the very same file.

    Args:
        md5, size: what to expect instead of the official values; with `md5` alone the size is free.
        progress: called as progress(done_bytes, total_bytes or None), from 0 again on a restart.
        timeout: seconds without a byte before giving up.

    Raises `UserError` for: a model without an official file, a wrong file in the way, a full disk,
    an unreachable or failing server, an interruption, a file that is not the expected one.
    """
    spec = model_spec(model)
    if spec.official is None:
        raise UserError(f"There is nothing to download for {model}: {spec.weights_note}.")
    url = url or spec.official.url
    if not url.startswith(("http://", "https://")):
        raise UserError(f"The URL is {url!r}, expected one that starts with http:// or https://.")
    if md5 is None:
        md5, size = spec.official.md5, size or spec.official.size
    target = _prepare_target(Path(directory).expanduser(), spec.official.file)
    if target.exists():
        if problem := _mismatch(target, md5, size):
            raise UserError(f"{target} exists but {problem}: delete it, or choose another folder.")
        return target
    part = target.with_name(target.name + ".part")
    report = progress or (lambda done, total: None)
    try:
        while True:
            resumed = _fetch(url, part, size, report, timeout)
            problem = _mismatch(part, md5, size)
            if problem is None:
                os.replace(part, target)
                return target
            part.unlink()
            if not resumed:  # a resumed .part may stem from another file: try once more, afresh
                raise UserError(
                    f"The file from {url} {problem}; it was deleted. Try again, or pass the URL "
                    f"of a mirror with the original {target.name}."
                )
    except OSError as error:  # what the network raises is already a UserError
        raise _disk_problem(error, target.parent) from error


def _prepare_target(directory: Path, file: str) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot use {directory} as download folder ({error.strerror}): choose another one."
        ) from error
    target = directory / file
    if target.is_dir():
        raise UserError(f"{target} is a folder, expected a file: remove it or choose another one.")
    return target


def _mismatch(path: Path, md5: str, size: int | None) -> str | None:
    """What is wrong with the file, as the rest of a sentence, or None."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes, expected {size:,}"
    digest = hash_file(path)[0]
    return None if digest == md5.lower() else f"has MD5 {digest}, expected {md5.lower()}"


def _fetch(url: str, part: Path, size: int | None, report: Progress, timeout: float) -> bool:
    """Complete `part` from `url`; True when its first bytes are from an earlier run."""
    start = part.stat().st_size if part.exists() else 0
    if size is not None and start > size:
        start = 0
    if size is not None and start == size:
        return True
    _require_space(part.parent, None if size is None else size - start)
    response = _open(url, start, timeout) or _open(url, 0, timeout)
    if response is None:
        raise UserError(f"The server refuses to send {url} (HTTP 416): try another URL.")
    with response:
        start = start if response.status == 206 else 0
        total = _announced_total(response, start)
        if size is not None and total is not None and total != size:
            raise UserError(
                f"{url} offers {total:,} bytes, expected {size:,}: this is not the original file; "
                "check the URL."
            )
        if size is None and total is not None:
            _require_space(part.parent, total - start)
        try:
            _copy(response, part, start, total or size, report)
        except _LineError as error:
            raise _interrupted(url, part, total or size, str(error)) from error
    return start > 0


def _open(url: str, start: int, timeout: float) -> http.client.HTTPResponse | None:
    """The response from byte `start` on, or None when the server rejects that position."""
    headers = {"User-Agent": "structsam", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:
            error.close()
            return None
        raise UserError(
            f"The server answered {error.code} {error.reason} for {url}: check the URL, or try "
            "again later."
        ) from error
    except ValueError as error:  # of the URL: brackets, or letters beyond ASCII
        raise UserError(f"{url} is no URL ({error}): check it.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise UserError(
            f"Cannot reach {url} ({reason}): check the connection and any proxy settings, then "
            "try again."
        ) from error
    if response.status == 206 and _content_range(response)[0] != start:
        response.close()
        return None
    return response


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """First byte and total size out of `Content-Range: bytes 5-9/10`."""
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header.strip())
    if not match:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _announced_total(response: http.client.HTTPResponse, start: int) -> int | None:
    if response.status == 206 and (total := _content_range(response)[1]) is not None:
        return total
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdigit() else None


class _LineError(Exception):
    """The connection broke; unlike an `OSError` out of writing, which is the disk's."""


def _copy(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, report: Progress
) -> None:
    done = start
    report(done, total)
    with part.open("ab" if start else "wb") as file:
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            report(done, total)
    if total is not None and done < total:
        raise _LineError("the server closed the connection")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _LineError(str(error) or type(error).__name__) from error


def _interrupted(url: str, part: Path, total: int | None, reason: str) -> UserError:
    have = part.stat().st_size if part.exists() else 0
    of_total = "" if total is None else f" of {total:,}"
    return UserError(
        f"The download of {url} stopped after {have:,}{of_total} bytes ({reason}): run the same "
        "command again to go on from there."
    )


def _require_space(directory: Path, needed: int | None) -> None:
    free = shutil.disk_usage(directory).free
    if needed is not None and free < needed:
        raise UserError(
            f"{directory} has {free:,} bytes free, expected at least {needed:,}: free some space "
            "or choose another folder."
        )


def _disk_problem(error: OSError, directory: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(
            f"The disk of {directory} is full: free some space, then run the same command again."
        )
    return UserError(f"Cannot write to {directory} ({error.strerror or error}): check its access.")
