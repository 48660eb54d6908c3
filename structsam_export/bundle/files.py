"""Files of a bundle: a name that stays inside its folder, a digest, a size in words, a lock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from structsam.errors import UserError
from structsam_export.bundle.atomic import as_user_error
from structsam_export.bundle.digest_note import DigestNote


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


@dataclass(frozen=True)
class FileRecord:
    """Bytes and hex SHA-256 of a file as it was written."""

    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileRecord:
        """Look at a file."""
        return FileRecord(path.stat().st_size, sha256_of(path))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> FileRecord:
        """Read the form that `vars(record)` has after a trip through JSON."""
        return FileRecord(data["size"], data["sha256"])

    def damage(self, path: Path, digest: bool | Literal["once"] = True) -> str | None:
        """Say how a file differs from the record: `is missing`, `was altered: ...`, or None.

        Args:
            digest: also compare the SHA-256, which reads all of the file; the size always is.
                `once` does without when the file is the one that it was compared with before; see
                `DigestNote`.
        """
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != self.size:
            return f"was altered: {size} bytes, not {self.size}"
        if not digest:
            return None
        note = DigestNote(path) if digest == "once" else None
        if note and note.vouches_for(self.sha256):
            return None
        if sha256_of(path) != self.sha256:
            return "was altered: its SHA-256 is not the recorded one"
        if note:
            note.write(self.sha256)
        return None


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
