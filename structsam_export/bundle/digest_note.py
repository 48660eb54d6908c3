"""Remember that a file's digest was compared: reading a large file takes seconds on slow flash."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from structsam.errors import UserError
from structsam_export.bundle import atomic

#: Seconds. A younger file could be written again without a change of its size and time.
_SETTLED = 2.0


class DigestNote:
    """A hidden file beside another one: its SHA-256, and its size, time and inode at that time.

    It saves time and proves nothing: who can write the file can write the note. A copied, restored
    or touched file has another time or inode, and is read again.
    """

    def __init__(self, path: Path) -> None:
        """Look at a file that exists, before its digest is computed."""
        self._note = path.with_name(f".{path.name}.sha256")
        found = path.stat()
        self._mtime = found.st_mtime
        self._facts = {
            "size": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            "inode": found.st_ino,
        }

    def vouches_for(self, sha256: str) -> bool:
        """Whether the file is still the one that had this digest."""
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(noted == {"sha256": sha256, **self._facts})

    def write(self, sha256: str) -> None:
        """Note the digest; nothing where the folder cannot be written."""
        if time.time() - self._mtime < _SETTLED:
            return
        with suppress(UserError):
            atomic.write_text(self._note, json.dumps({"sha256": sha256, **self._facts}))
