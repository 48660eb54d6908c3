"""Cityscapes, validation (Cordts et al. 2016): instances from `gtFine_instanceIds.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from structsam.evaluation.datasets.image_files import read_labels, require_same_size
from structsam.evaluation.datasets.label_maps import labels_in, object_per_label
from structsam.evaluation.datasets.layout import Layout, require_layout, subfolders
from structsam.evaluation.datasets.pairs import Annotation, PairedDataset, files_by_name
from structsam.evaluation.sample import Problem

#: Classes whose instances are told apart, by their number (labels.py of cityscapesScripts).
_CLASSES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer",
    31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_INSTANCES = 1000  # the class is the number above this, the instance the rest
_IMAGES, _MASKS = "leftImg8bit/val", "gtFine/val"


class Cityscapes(PairedDataset):
    """500 driving scenes of 2048 x 1024.

    The value 26003 is the fourth car; 26 alone is a group of cars that nobody told apart: left out
    and counted. All other classes are no objects. Names are those of the files, without the city's
    folder: `frankfurt_000000_000294`.
    """

    name = "cityscapes"
    title = "Cityscapes val"
    layout = (
        "leftImg8bit/val/CITY/NAME_leftImg8bit.png\ngtFine/val/CITY/NAME_gtFine_instanceIds.png"
    )

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        require_layout(type(self), self.root, [Layout((f"{_IMAGES}/", f"{_MASKS}/"))])
        images: dict[str, Path] = {}
        masks: dict[str, Path] = {}
        problems: list[Problem] = []
        for into, folder, tail in (
            (images, _IMAGES, "_leftImg8bit"),
            (masks, _MASKS, "_gtFine_instanceIds"),
        ):
            for city in subfolders(self.root / folder):
                found, wrong = files_by_name(city, (".png",), tail)
                into.update(found)
                problems += wrong
        self._take(images, masks, problems)

    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        ids, _ = read_labels(image_id, mask_path)
        require_same_size(image_id, image, ids, image_path, mask_path)
        found = labels_in(ids)
        instances = [label for label in found if label >= _INSTANCES]
        groups = [
            Problem(image_id, "left out", f"a group of {_CLASSES[label]} without instances")
            for label in found
            if label in _CLASSES
        ]
        return Annotation(object_per_label(ids, instances, _class_of), groups)


def _class_of(label: int) -> str:
    number = label // _INSTANCES
    return _CLASSES.get(number, f"class {number}")
