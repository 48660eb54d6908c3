"""A folder of images and a folder of masks: the layout for everyone's own data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.datasets.image_files import read_labels, require_same_size, unreadable
from structsam.evaluation.datasets.label_maps import labels_in, object_per_label
from structsam.evaluation.datasets.layout import Layout, require_layout, subfolders
from structsam.evaluation.datasets.pairs import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Annotation,
    PairedDataset,
    files_by_name,
)
from structsam.evaluation.sample import Problem

_IMAGES, _MASKS, _VOID, _SEGMENTS = "images", "masks", "void", "segments.json"
_ONE_SET = Layout((f"{_IMAGES}/", f"{_MASKS}/"))
_SEVERAL = Layout((f"*/{_IMAGES}/", f"*/{_MASKS}/"))
_WHITE = 255


class Folder(PairedDataset):
    """Images and masks of the same names, of one set or of several sets side by side.

    A mask's value 0 is background. One other value (0 and 1, 0 and 255, 0 and v) is one object;
    several are one object each, with the value as its id. Two cases of several values with 255:
    in a palette PNG 255 is void, as in PASCAL VOC; in a grey one nobody can tell void from
    an object or a soft edge, so unless the labels are 1 to 255 without a gap the image is refused.

    Where they exist, `void/NAME.png` marks pixels that are not scored (any value but 0), and
    `segments.json` holds the classes: {NAME: [{"id": value, "category": class}, ...]}. In a root
    of several sets, names begin with the set's folder: `voc/2007_000033`.
    """

    name = "folder"
    title = "folder"
    layout = (
        "images/NAME.jpg (or .png, .tif, .bmp, .webp)\n"
        "masks/NAME.png (labels; or .tif, .bmp)\n"
        "void/NAME.png and segments.json, both optional\n"
        "or several such folders: SET/images, SET/masks"
    )

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._voids: dict[str, Path] = {}
        self._classes: dict[str, dict[int, str]] = {}
        several = require_layout(type(self), self.root, [_ONE_SET, _SEVERAL]) is _SEVERAL
        images: dict[str, Path] = {}
        masks: dict[str, Path] = {}
        problems: list[Problem] = []
        for folder in subfolders(self.root) if several else [self.root]:
            prefix = f"{folder.name}/" if several else ""
            if not several or not _ONE_SET.missing(folder):
                problems += self._list(folder, prefix, images, masks)
            elif len(_ONE_SET.missing(folder)) == 1:  # half a set; other folders are no concern
                detail = f"it has no {_ONE_SET.missing(folder)[0]}"
                problems.append(Problem(folder.name, "missing partner", detail))
        self._take(images, masks, problems)

    def _list(
        self, folder: Path, prefix: str, images: dict[str, Path], masks: dict[str, Path]
    ) -> list[Problem]:
        """Add the files of one set, and return what is wrong with them."""
        found, problems = files_by_name(folder / _IMAGES, IMAGE_SUFFIXES, prefix=prefix)
        images.update(found)
        drawn, wrong = files_by_name(folder / _MASKS, MASK_SUFFIXES, prefix=prefix)
        masks.update(drawn)
        problems += wrong
        if (folder / _VOID).is_dir():
            voids, wrong = files_by_name(folder / _VOID, MASK_SUFFIXES, prefix=prefix)
            self._voids |= voids
            problems += wrong
            problems += [
                Problem(name, "missing partner", f"{_VOID}/{path.name} has no image")
                for name, path in voids.items()
                if name not in found
            ]
        if (folder / _SEGMENTS).is_file():
            read = _read_segments(folder / _SEGMENTS)
            self._classes |= {f"{prefix}{name}": classes for name, classes in read.items()}
        return problems

    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        labels, palette = read_labels(image_id, mask_path)
        require_same_size(image_id, image, labels, image_path, mask_path)
        found, void = labels_in(labels), None
        if len(found) > 1 and _WHITE in found and found[-1] == _WHITE:
            if palette:
                found, void = found[:-1], labels == _WHITE
            elif len(found) < _WHITE:
                reason = "255 beside other labels is void, an object, or a soft edge: "
                mend = "move void to void/, renumber the object, or threshold the mask"
                raise unreadable(image_id, mask_path, reason + mend)
        if image_id in self._voids:
            drawn, _ = read_labels(image_id, self._voids[image_id])
            require_same_size(image_id, image, drawn, image_path, self._voids[image_id])
            void = drawn != 0 if void is None else void | (drawn != 0)
        classes = self._classes.get(image_id, {})
        empty = [
            Problem(image_id, "empty mask", f"{_SEGMENTS} lists segment {label}, without pixels")
            for label in sorted(classes)
            if label not in found
        ]
        objects = object_per_label(labels, found, lambda label: classes.get(label, ""))
        return Annotation(objects, empty, None if void is None else ~void)


def _read_segments(path: Path) -> dict[str, dict[int, str]]:
    """Class of every id, by image. Raises `UserError` for anything that is not that."""
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, Mapping):
            raise TypeError(f"it holds a {type(told).__name__}")
        return {
            name: {int(segment["id"]): str(segment.get("category", "")) for segment in segments}
            for name, segments in told.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"cannot use {path}: {type(error).__name__} {error}. Expected "
            '{"NAME": [{"id": 1, "category": "dog"}, ...]}; mend it or take it away'
        ) from None
