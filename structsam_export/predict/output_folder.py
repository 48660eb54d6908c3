"""Where a prediction is written: one folder a photo, which never takes another photo's place."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle import atomic

OVERLAY_PNG = "overlay.png"
PREDICTION_JSON = "prediction.json"
_MASK_NAME = re.compile(r"mask_\d+(_\d)?\.png")
#: zlib's level. On pictures of 20 megapixels 1 takes a third of the time of 6, the usual one.
_COMPRESSION = 1


class OutputFolder:
    """The folder of one photo's prediction.

    Args:
        path: the folder; it is made when the first file is written.
        earlier: the prediction that an earlier run left there of the same photo; {} without one.
    """

    def __init__(self, path: Path, earlier: dict[str, Any]) -> None:
        self.path, self.earlier = path, earlier

    def save_png(self, name: str, picture: Image.Image) -> Path:
        """Write a picture, atomically."""
        with atomic.staged_file(self.path / name) as temporary:
            picture.save(temporary, format="PNG", compress_level=_COMPRESSION)
        return self.path / name

    def finish(self, details: dict[str, Any], keep: Sequence[str]) -> Path:
        """Delete what the earlier run wrote and this one did not; write `prediction.json`.

        Args:
            keep: names of the pictures that were written now.
        """
        for name in {*_pictures(self.earlier), OVERLAY_PNG} - set(keep) if self.earlier else ():
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        text = json.dumps(details, indent=2)
        atomic.write_text(self.path / PREDICTION_JSON, text + "\n")
        return self.path / PREDICTION_JSON


def choose_folder(photo: Path, sha256: str, wanted: Path, taken: set[Path]) -> OutputFolder:
    """Choose the folder that a photo may be written into.

    A folder that holds another photo's prediction is left alone: `wanted` gets a number then,
    `cat-masks-2`. The same photo replaces its own prediction.

    Args:
        sha256: of the photo's file.
        taken: folders of this run; the chosen one is added.

    Raises:
        UserError: it is a file.
    """
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        _refuse_file(path)
        earlier = read_prediction(path)
        if path.resolve() not in taken and (not earlier or _same_photo(earlier, photo, sha256)):
            taken.add(path.resolve())
            return OutputFolder(path, earlier)
        number += 1


def given_folder(photo: Path, sha256: str, path: Path) -> OutputFolder:
    """Take the folder that the user named.

    Raises:
        UserError: it is a file, or holds the prediction of another photo.
    """
    _refuse_file(path)
    earlier = read_prediction(path)
    if earlier and not _same_photo(earlier, photo, sha256):
        raise UserError(
            f"{path} holds the prediction of {earlier['image']['path']}, which {photo} would "
            "replace. Choose another folder with `out=`, or delete that one"
        )
    return OutputFolder(path, earlier)


def read_prediction(folder: Path) -> dict[str, Any]:
    """Return the `prediction.json` of an earlier run; {} where there is none that makes sense."""
    try:
        found = json.loads((folder / PREDICTION_JSON).read_text(encoding="utf-8"))
        if isinstance(found["image"]["path"], str):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _same_photo(earlier: dict[str, Any], photo: Path, sha256: str) -> bool:
    """By what the file holds; by its place where an earlier version recorded no more."""
    image = earlier["image"]
    if "sha256" in image:
        return bool(image["sha256"] == sha256)
    return Path(image["path"]).resolve() == photo.resolve()


def _pictures(earlier: dict[str, Any]) -> list[str]:
    """Names of the masks of an earlier run; nothing else may be deleted."""
    try:
        prompts = earlier.get("prompts", [earlier])
        names = [str(mask.get("file")) for prompt in prompts for mask in prompt["masks"]]
    except (AttributeError, KeyError, TypeError):
        return []
    return [name for name in names if _MASK_NAME.fullmatch(name)]


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, and a folder is needed. Choose another with `out=`")
