"""What is done, on disk: lines that are only ever appended, and what resumes from them.

Every run appends to a part of its own, a line of JSON for a photo, written when all else that the
photo leaves behind is there. A run that was killed leaves at most one torn line, at the end of its
part, and nothing is appended behind it. Of several lines about a photo one with masks counts, or
the last one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle.atomic import as_user_error

_FOLDER = "parts"
#: Files that Ray writes, of lines {"name": ..., "line": ...}.
RAY_PARTS = "parts/ray"
_SYNC_SECONDS = 1.0


class PartWriter:
    """Appends lines to a new part; a line counts once it is written to its end.

    Lines are handed to the system at once, and forced to the disk every second and at the end.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, out: Path) -> None:
        folder = out / _FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(path.stem) for path in _parts(out) if path.stem.isdigit()]
            self.path = folder / f"{max(numbers, default=0) + 1:06d}.jsonl"
            self._stream = self.path.open("xb", buffering=0)
        except OSError as error:
            raise as_user_error(error, folder) from None
        self._synced = time.monotonic()

    def append(self, entry: dict[str, Any]) -> None:
        """Write what was found in a photo, or why nothing was."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            while line:
                line = line[self._stream.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise as_user_error(error, self.path) from None

    def close(self) -> None:
        """Force everything to the disk."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise as_user_error(error, self.path) from None
        finally:
            self._stream.close()


class Done:
    """Where the last line about every photo stands; its content stays on disk."""

    def __init__(self, out: Path) -> None:
        self._files = _parts(out)
        self._at: dict[str, tuple[int, int]] = {}
        self._failed: set[str] = set()
        for number, file in enumerate(self._files):
            for offset, entry in _lines(file):
                name = entry["name"]
                if "problem" in entry and name in self:
                    continue
                self._at[name] = (number, offset)
                (self._failed.add if "problem" in entry else self._failed.discard)(name)

    def __contains__(self, name: str) -> bool:
        """Whether a photo has its masks; one that had a problem is tried again."""
        return name in self._at and name not in self._failed

    def entries(self, names: Iterator[str]) -> Iterator[dict[str, Any]]:
        """Yield the last line about these photos, in this order, leaving out unknown ones."""
        streams = [file.open("rb") for file in self._files]
        try:
            for name in names:
                if name in self._at:
                    number, offset = self._at[name]
                    streams[number].seek(offset)
                    yield _entry(streams[number].readline())
        finally:
            for stream in streams:
                stream.close()


def _parts(out: Path) -> list[Path]:
    own = sorted(path for path in (out / _FOLDER).glob("*.jsonl") if path.stem.isdigit())
    return [*own, *sorted((out / RAY_PARTS).glob("*.json"))]


def _entry(line: bytes) -> dict[str, Any]:
    """Return what a line says; raises `ValueError`, `KeyError` or `TypeError` for a damaged one."""
    entry = json.loads(line)
    if "line" in entry:
        entry = json.loads(entry["line"])
    if not isinstance(entry["name"], str):
        raise TypeError
    return dict(entry)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset, entry) of every whole line."""
    with file.open("rb") as stream:
        offset = 0
        for line in stream:
            if not line.endswith(b"\n"):
                return  # torn
            try:
                entry = _entry(line)
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{file} is damaged at byte {offset}. Delete it: its photos are done again"
                ) from None
            yield offset, entry
            offset += len(line)
