"""What OpenVINO compiled, kept in the bundle for the next process: `engines/openvino/PART/`.

OpenVINO finds by itself what another version, processor or network compiled, and what was cut off.
It does not see changed bytes in the middle, and would compute with them: digests are kept beside.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.files import sha256_of
from structsam_export.bundle.manifest import ENGINE_FOLDER, PartName

_log = logging.getLogger("structsam_export")
_BLOBS = "*.blob"


class ModelCache:
    """The folder of one network. Without one it runs too, and is compiled again every time."""

    def __init__(self, bundle: Path, part: PartName) -> None:
        self.folder = bundle / ENGINE_FOLDER / "openvino" / part

    def settings(self) -> dict[str, str]:
        """Make the folder, remove what was changed in it, and return what OpenVINO takes.

        Returns:
            Nothing where the folder cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for blob in self.folder.glob(_BLOBS):
                note = _note(blob)
                if not note.is_file() or note.read_text(encoding="utf-8") != sha256_of(blob):
                    blob.unlink()
        except OSError as error:
            _log.debug("nothing that OpenVINO compiles is kept: %s", error)
            return {}
        return {"CACHE_DIR": str(self.folder)}

    def note_new(self) -> None:
        """Write the digest of what was just compiled."""
        for blob in self.folder.glob(_BLOBS):
            if not _note(blob).is_file():
                with suppress(UserError, OSError):
                    atomic.write_text(_note(blob), sha256_of(blob))


def _note(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.sha256")
