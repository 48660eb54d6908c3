"""A file in COCO's form as a source: boxes are prompts, and ids and categories are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bulk.task import OBJECT, Tasks


@dataclass(frozen=True)
class CocoFacts:
    """What a file in COCO's form says besides photos and boxes.

    Args:
        image_ids: the id of every photo, by its name.
        categories: those of the file, and `object` where an annotation has none.
    """

    image_ids: Mapping[str, Any]
    categories: tuple[dict[str, Any], ...]


def read_coco(path: Path, tasks: Tasks) -> CocoFacts:
    """Add the photos of a file, and the boxes of its annotations, to the tasks.

    An annotation without a category gets one, `object`, under an id that no other category has.

    Raises:
        UserError: not in COCO's form, or one id or name stands for two photos.
        OSError: the file cannot be read.
    """
    try:
        coco = json.loads(path.read_text("utf-8"))
        images = [(image["id"], str(image["file_name"])) for image in coco["images"]]
        names, image_ids = dict(images), {name: key for key, name in images}
        if not len(images) == len(names) == len(image_ids):
            raise _named_twice(path, images)
        for name in image_ids:
            tasks.of(name)
        categories = [dict(category) for category in coco.get("categories", ())]
        annotations = [each for each in coco.get("annotations", ()) if "bbox" in each]
        own = [each.get("category_id") for each in annotations]
        nameless = _free_id({*own, *(category["id"] for category in categories)})
        for annotation, category in zip(annotations, own, strict=True):
            x, y, width, height = map(float, annotation["bbox"])
            task = tasks.of(names[annotation["image_id"]])
            task.boxes.append((x, y, x + width, y + height))
            label = nameless if category is None else category
            task.labels.append({"category_id": label, "source_id": annotation.get("id")})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is not in COCO's form ({reason}). It needs `images` with `id` and `file_name`"
        ) from None
    if None in own:
        categories.append({**OBJECT, "id": nameless})
    return CocoFacts(image_ids, tuple(categories))


def _named_twice(path: Path, images: list[tuple[Any, str]]) -> UserError:
    """Masks of two images under one id, or of one under two, could not be scored."""
    keys, names = zip(*images, strict=True)
    found = [
        (what, *Counter(values).most_common(1)[0])
        for what, values in (("id", keys), ("file_name", names))
    ]
    what, value, times = max(found, key=lambda each: each[2])
    return UserError(f"{path} has {times} images with the {what} {value}. Give each its own")


def _free_id(taken: set[Any]) -> int:
    return next(number for number in count(1) if number not in taken)
