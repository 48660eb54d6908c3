"""Reads COCO's instances file, once and in a compact form, and draws its masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.mask_rle import decode, load_pycocotools
from structsam.mask_runs import mask_of

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotated object.

    Args:
        number: COCO's id of the annotation.
        category: COCO's id of the class.
        box: (x0, y0, x1, y1) in pixels, right and bottom exclusive.
        shape: polygons, each float64 [2 P] of x and y in turn, or COCO's run lengths.
    """

    number: int
    category: int
    box: Box
    crowd: bool
    shape: list[np.ndarray] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class CocoImage:
    """One image; `instances` are sorted by number."""

    number: int
    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Instances:
    """A whole file: images by the stem of their file, and classes by COCO's id."""

    images: dict[str, CocoImage]
    categories: dict[int, str]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. Copy or unpack it again") from None


def read_instances(path: Path) -> Instances:
    """Read `instances_*.json`.

    Raises:
        UserError: unreadable, or no instances file.
    """
    told = read_json(path)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in told["categories"]}
        by_number = {
            int(image["id"]): CocoImage(
                int(image["id"]), image["file_name"], int(image["height"]), int(image["width"])
            )
            for image in told["images"]
        }
        for entry in told["annotations"]:
            by_number[entry["image_id"]].instances.append(_instance(entry, categories))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no COCO instances file: {type(error).__name__} {error}. Expected "
            "`images`, `categories` and `annotations` with category_id, bbox and segmentation"
        ) from None
    for image in by_number.values():
        image.instances.sort(key=lambda instance: instance.number)
    return Instances({Path(i.file_name).stem: i for i in by_number.values()}, categories)


def _instance(entry: Mapping[str, Any], categories: Mapping[int, str]) -> Instance:
    shape = entry["segmentation"]
    if isinstance(shape, list):
        shape = [np.array(part, np.float64) for part in shape]  # a third of the memory of floats
    elif isinstance(shape["counts"], list):
        shape = {"size": shape["size"], "counts": np.array(shape["counts"], np.int64)}
    if int(entry["category_id"]) not in categories:
        raise ValueError(f"category_id {entry['category_id']} is not among the categories")
    crowd = bool(entry.get("iscrowd", 0))
    box = corners(entry["bbox"])
    return Instance(int(entry["id"]), int(entry["category_id"]), box, crowd, shape)


def corners(bbox: Any) -> Box:
    """Turn COCO's [x, y, width, height] into corners.

    Raises:
        ValueError: no four finite numbers.

    >>> corners([10, 20, 3, 4.5])
    (10.0, 20.0, 13.0, 24.5)
    """
    x, y, width, height = (float(value) for value in bbox)
    if not np.isfinite([x, y, width, height]).all():
        raise ValueError(f"bbox {bbox} has a value that is not finite")
    return x, y, x + width, y + height


def draw(instance: Instance, height: int, width: int) -> np.ndarray:
    """Return the mask bool [H, W] of an instance, as pycocotools draws it.

    Raises:
        UserError: run lengths that do not fill the image; pycocotools is missing.
    """
    if not isinstance(instance.shape, list):
        return _fill_runs(instance.shape, height, width)
    # fewer than three corners enclose nothing, and pycocotools takes four numbers for a box
    outlines = [part.tolist() for part in instance.shape if len(part) >= 6]
    if not outlines:
        return np.zeros((height, width), bool)
    tools = load_pycocotools("mask")
    rle = tools.merge(tools.frPyObjects(outlines, height, width))
    return decode(str(rle["counts"], "ascii"), (height, width))


def _fill_runs(shape: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Undo run lengths, compressed to text or as numbers; see `mask_rle`."""
    counts = shape["counts"]
    if list(shape["size"]) != [height, width]:
        raise UserError(f"its mask has the size {shape['size']}, its image {[height, width]}")
    if not isinstance(counts, np.ndarray):
        return decode(counts, (height, width))
    if (counts < 0).any() or counts.sum() != height * width:
        raise UserError(f"its runs cover {counts.sum()} of {height * width} pixels")
    return mask_of(counts, (height, width))
