"""The photos of a folder that INT8 is calibrated on, and those that its cost is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle.files import sha256_of
from structsam_export.predict.image_file import PHOTO_SUFFIXES, Note, read_image

FEWEST, MOST = 16, 128
#: Of four photos one is held out, and no more than these: their masks are computed twice.
MOST_HELD_OUT = 8


@dataclass(frozen=True)
class CalibrationPhotos:
    """Photos of one folder, by name.

    Args:
        measured: the ranges of activations are measured on them.
        held_out: what INT8 costs is measured on them.
    """

    measured: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @staticmethod
    def of(folder: str | Path, note: Note = lambda text: None) -> CalibrationPhotos:
        """Choose from what lies right inside a folder, and read every photo once.

        Of more than `MOST` photos as many are taken, spread over their names.

        Raises:
            UserError: no folder, fewer than `FEWEST` photos, or one that cannot be read.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "no such folder"
            raise UserError(
                f"no calibration photos at {folder}: {what}. Give `calibrate=` a folder of "
                f"{FEWEST} to {MOST} photos like those of your task"
            )
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
        if len(found) < FEWEST:
            raise UserError(
                f"{folder} holds {len(found)} photo(s), and calibration needs {FEWEST} to {MOST}: "
                "fewer do not show how large activations get. Add photos like those of your task"
            )
        if len(found) > MOST:
            note(f"{folder} holds {len(found)} photos: {MOST} of them are used, spread by name")
            found = [found[i * len(found) // MOST] for i in range(MOST)]
        for photo in found:
            read_image(photo)
        step = max(4, -(-len(found) // MOST_HELD_OUT))
        held_out = tuple(found[step - 1 :: step])
        return CalibrationPhotos(tuple(p for p in found if p not in held_out), held_out)

    def to_dict(self) -> dict[str, Any]:
        """Say which they are, JSON-ready: names and SHA-256, in order."""
        return {
            part: [{"name": path.name, "sha256": sha256_of(path)} for path in paths]
            for part, paths in (("measured", self.measured), ("held_out", self.held_out))
        }
