"""Files of a bundle: a name that stays inside its folder, a digest, a size in words, a lock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from structsam.errors import UserError
from structsam_export.bundle.atomic import as_user_error


def inside(folder: Path, name: object) -> Path:
    """Return the path of a file that another file names, and that must lie in `folder`.

    Names are judged as Windows and as POSIX read them, so that a bundle is safe on both.

    Args:
        name: relative to `folder`, as read from JSON.

    Raises:
        UserError: no text, empty, absolute, with a drive or `..`, or a link leads elsewhere.
    """
    advice = "Do not use this bundle unless you know who made it, and export it again"
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{folder} names a file {name!r}, and a relative path is needed. {advice}")
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if any(kind.anchor or ".." in kind.parts for kind in kinds):
        raise UserError(
            f"{folder} names the file {name!r}, which is outside of that folder. {advice}"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} is a link to {path.resolve()}, outside of {folder}. Put the file itself there "
            "if you know who made the link"
        )
    return path


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def size_text(size: int) -> str:
    """Write a file's size in MB of 10^6 bytes, as disks and downloads do: `4.1 MB`, `183 MB`."""
    megabytes = size / 1e6
    return f"{megabytes:.1f} MB" if megabytes < 10 else f"{megabytes:.0f} MB"


@contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock against other processes and threads; wait for it as long as another holds it.

    The empty `file` stays: to delete it would let two others hold it at once. A process that
    dies gives its lock back.

    Args:
        waiting: called once when another holds it.

    Raises:
        UserError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise as_user_error(error, file) from None
    try:
        yield
    finally:
        lock.release()
