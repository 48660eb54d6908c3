"""ADE20K, validation (Zhou et al. 2017, 2019): the full set of 2021, or SceneParsing of 2016."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from structsam.evaluation.datasets.image_files import (
    read_channels,
    read_labels,
    require_same_size,
    unreadable,
)
from structsam.evaluation.datasets.label_maps import (
    labels_in,
    object_per_label,
    object_per_region,
)
from structsam.evaluation.datasets.layout import Layout, require_layout, subfolders
from structsam.evaluation.datasets.pairs import Annotation, PairedDataset, files_by_name
from structsam.evaluation.sample import ObjectMask, Problem

_FULL = "images/ADE/validation"
_IMAGES, _MASKS, _NAMES = "images/validation", "annotations/validation", "objectInfo150.txt"
_SEG = "_seg"
#: The blue channel tells instances apart, the class is in red and green.
_INSTANCES = 256


class Ade20k(PairedDataset):
    """2000 scenes. The layout under `root` decides what an object is.

    Full set (ADE20K_2021_17_01): every whole object of `_seg.png`, its visible pixels; parts of
    objects are not used. SceneParsing
    (ADEChallengeData2016): every 8-connected region of each of the 150 classes, because its labels
    do not tell instances apart; a class's scattered regions have no box in common.
    """

    name = "ade20k"
    title = "ADE20K validation"
    layout = (
        "images/ADE/validation/.../NAME.jpg, NAME_seg.png and NAME.json (ADE20K_2021_17_01)\n"
        "or images/validation/NAME.jpg, annotations/validation/NAME.png and objectInfo150.txt "
        "(ADEChallengeData2016)"
    )

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        full = Layout((f"{_FULL}/",))
        parsing = Layout((f"{_IMAGES}/", f"{_MASKS}/"))
        self._full = require_layout(type(self), self.root, [full, parsing]) is full
        self._classes: dict[int, str] = {}
        if self._full:
            self._list_full()
            return
        images, problems = files_by_name(self.root / _IMAGES, (".jpg",))
        masks, wrong = files_by_name(self.root / _MASKS, (".png",))
        self._classes = _read_names(self.root / _NAMES)
        self._take(images, masks, [*problems, *wrong])

    def _list_full(self) -> None:
        """Scenes lie in folders of folders: outdoor/urban/street."""
        images: dict[str, Path] = {}
        masks: dict[str, Path] = {}
        twice: list[Problem] = []
        waiting = [self.root / _FULL]
        while waiting:
            folder = waiting.pop()
            photos, _ = files_by_name(folder, (".jpg",))  # other files here are no images
            drawn, _ = files_by_name(folder, (".png",), _SEG)
            for name in sorted(photos.keys() & images.keys()):
                twice.append(Problem(name, "missing partner", f"a second one in {folder.name}"))
            images = {**photos, **images}
            masks = {**drawn, **masks}
            # a folder named after an image holds a file per instance
            waiting += [each for each in subfolders(folder) if each.name not in photos]
        self._take(images, masks, twice)

    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        read = self._instances if self._full else self._regions
        labels, objects = read(image_id, mask_path)
        require_same_size(image_id, image, labels, image_path, mask_path)
        return Annotation(objects)

    def _regions(self, image_id: str, mask_path: Path) -> tuple[np.ndarray, list[ObjectMask]]:
        labels, _ = read_labels(image_id, mask_path)
        name = partial(_name, self._classes)
        return labels, list(object_per_region(labels, labels_in(labels), name))

    def _instances(self, image_id: str, mask_path: Path) -> tuple[np.ndarray, list[ObjectMask]]:
        red, green, blue = np.moveaxis(read_channels(image_id, mask_path).astype(np.int32), 2, 0)
        # with the class: blue has 255 values, and a crowded scene more objects
        labels = np.where(blue > 0, (red // 10 * 256 + green) * _INSTANCES + blue, 0)
        told = mask_path.with_name(mask_path.stem.removesuffix(_SEG) + ".json")
        classes = _read_objects(image_id, told)
        objects = object_per_label(
            labels, labels_in(labels), lambda label: _name(classes, label // _INSTANCES)
        )
        return labels, objects


def _name(classes: dict[int, str], number: int) -> str:
    return classes.get(number, f"class {number}")


def _read_names(path: Path) -> dict[int, str]:
    """Names of the 150 classes: lines of number, shares, counts and name; none without a file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines]
    return {int(row[0]): row[-1].strip() for row in rows if row[0].strip().isdigit()}


def _read_objects(image_id: str, path: Path) -> dict[int, str]:
    """Names of the classes in one image; none without a file.

    Raises:
        ProblemError: damaged.
    """
    if not path.is_file():
        return {}
    try:
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # as a few files of the release are
        told: Any = json.loads(text, strict=False)
        return {int(o["name_ndx"]): str(o["name"]) for o in told["annotation"]["object"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable(image_id, path, f"{type(error).__name__} {error}") from None
