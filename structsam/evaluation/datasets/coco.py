"""COCO val2017 (Lin et al. 2014): annotated boxes as prompts, or a detector's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.datasets.base import Dataset
from structsam.evaluation.datasets.coco_json import Box, CocoImage, Instance, draw, read_instances
from structsam.evaluation.datasets.detector_boxes import DetectedBox, match, read_boxes
from structsam.evaluation.datasets.image_files import read_image
from structsam.evaluation.datasets.layout import Layout, require_layout
from structsam.evaluation.datasets.pairs import (
    IMAGE_SUFFIXES,
    Annotation,
    files_by_name,
    make_sample,
)
from structsam.evaluation.mask_rle import load_pycocotools
from structsam.evaluation.sample import ObjectMask, Problem, ProblemError, Sample

_JSON = "annotations/instances_val2017.json"
_PLAIN = Layout(("val2017/", _JSON))
_INSIDE_IMAGES = Layout(("images/val2017/", _JSON))


class Coco(Dataset):
    """5000 photos with objects of 80 classes. Names are the files': `000000000139`.

    Without `boxes`, every object brings its annotated box. With `boxes`, every detection is an
    object with its box, score and class, by falling score; its mask is that of the annotated
    object that it means (see `detector_boxes.match`), or empty where there is none. Objects that
    no detection means follow, `prompted=False`. So every annotated object appears once, as average
    precision needs it. Crowds come last, never prompted.

    Args:
        root: folder of the set.
        boxes: JSON of a detector, [{image_id, category_id, bbox, score}, ...], or None.
    """

    name = "coco"
    title = "COCO val2017"
    layout = "val2017/NAME.jpg (or images/val2017/NAME.jpg)\nannotations/instances_val2017.json"

    def __init__(self, root: str | Path, boxes: str | Path | None = None) -> None:
        super().__init__(root)
        load_pycocotools("mask")  # missing, it is missed now
        found = require_layout(type(self), self.root, [_PLAIN, _INSIDE_IMAGES])
        files, problems = files_by_name(self.root / found.needs[0], IMAGE_SUFFIXES)
        told = read_instances(self.root / _JSON)
        self._categories = told.categories
        self._boxes = None if boxes is None else read_boxes(Path(boxes), told.categories)
        self._images = {name: told.images[name] for name in sorted(files) if name in told.images}
        self._files = files
        self.listing_problems = sorted(
            [*problems, *self._partners(told.images)], key=lambda p: (p.image_id, p.detail)
        )
        if not self._images:
            raise UserError(
                f"no image in {self.root / found.needs[0]} is listed in {_JSON}: one of the two "
                f"belongs to another set. Expected in {self.root}:\n{self.layout}"
            )

    def _partners(self, images: dict[str, CocoImage]) -> Iterable[Problem]:
        for name in images.keys() - self._files.keys():
            yield Problem(name, "missing partner", f"annotated, but there is no {name} file")
        for name in self._files.keys() - images.keys():
            detail = f"{self._files[name].name} is not in {_JSON}"
            yield Problem(name, "missing partner", detail)
        known = {image.number for image in images.values()}
        for number in (self._boxes or {}).keys() - known:
            detail = f"boxes for image {number}, which is not in {_JSON}"
            yield Problem(str(number), "missing partner", detail)

    @property
    def image_ids(self) -> list[str]:
        """Stems of all annotated files, sorted."""
        return list(self._images)

    def load(self, image_id: str) -> Sample:
        """Decode one image and draw its masks.

        Raises:
            ProblemError: the image cannot be used.
            UserError: no image of that name.
        """
        if image_id not in self._images:
            raise UserError(f"{self.name} in {self.root} has no image {image_id!r}: see image_ids")
        told = self._images[image_id]
        image = read_image(image_id, self._files[image_id])
        if image.shape[:2] != (told.height, told.width):
            detail = (
                f"{self._files[image_id].name} {image.shape[1]}x{image.shape[0]} and annotated "
                f"{told.width}x{told.height}"
            )
            raise ProblemError(Problem(image_id, "sizes differ", detail))
        instances, masks, problems = _drawn(image_id, told)
        if self._boxes is None:
            objects = [
                self._truth(instance, mask) for instance, mask in zip(instances, masks, strict=True)
            ]
        else:
            detected, bad = _usable(image_id, self._boxes.get(told.number, []), told)
            problems += bad
            objects = self._detected(detected, instances, masks, image.shape[:2])
        objects.sort(key=lambda each: each.crowd)  # stable: crowds last
        return make_sample(image_id, image, Annotation(objects, problems))

    def _truth(self, instance: Instance, mask: np.ndarray, prompted: bool = True) -> ObjectMask:
        x0, y0, x1, y1 = box = _cut(instance.box, mask.shape[0], mask.shape[1])
        solid = x1 > x0 and y1 > y0 and not instance.crowd  # else the mask's tight box
        return ObjectMask(
            str(instance.number),
            mask,
            self._categories[instance.category],
            box if solid else None,
            crowd=instance.crowd,
            prompted=prompted and not instance.crowd,
        )

    def _detected(
        self,
        boxes: list[DetectedBox],
        instances: list[Instance],
        masks: list[np.ndarray],
        size: tuple[int, ...],
    ) -> list[ObjectMask]:
        meant = match(boxes, instances)
        nothing = np.zeros(size, bool)
        objects = [
            ObjectMask(
                f"detection-{number}",
                nothing if which is None else masks[which],
                self._categories[detected.category],
                detected.box,
                score=detected.score,
            )
            for number, (detected, which) in enumerate(zip(boxes, meant, strict=True), start=1)
        ]
        return objects + [
            self._truth(instance, masks[which], prompted=False)
            for which, instance in enumerate(instances)
            if which not in meant
        ]


def _drawn(
    image_id: str, told: CocoImage
) -> tuple[list[Instance], list[np.ndarray], list[Problem]]:
    """Instances with their masks, and those that have none."""
    instances, masks, problems = [], [], []
    for instance in told.instances:
        try:
            mask = draw(instance, told.height, told.width)
        except UserError as error:
            detail = f"annotation {instance.number}: {error}"
            problems.append(Problem(image_id, "unreadable", detail))
            continue
        if mask.any():
            instances.append(instance)
            masks.append(mask)
        else:
            detail = f"annotation {instance.number} encloses no pixel"
            problems.append(Problem(image_id, "empty mask", detail))
    return instances, masks, problems


def _usable(
    image_id: str, boxes: list[DetectedBox], told: CocoImage
) -> tuple[list[DetectedBox], list[Problem]]:
    """Boxes, cut at the image's border, that enclose something; a problem for each other one."""
    usable, problems = [], []
    for detected in boxes:
        x0, y0, x1, y1 = box = _cut(detected.box, told.height, told.width)
        if x1 > x0 and y1 > y0:
            usable.append(replace(detected, box=box))
        else:
            detail = f"a detected box without area in the image: {detected.box}"
            problems.append(Problem(image_id, "left out", detail))
    return usable, problems


def _cut(box: Box, height: int, width: int) -> Box:
    """Cut a box at the image's border: x + w often rounds to a little more."""
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
