"""Parts -> `annotations.json` in COCO's form and `problems.csv`, written as they are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from structsam_export.bulk.parts import Done
from structsam_export.bundle import atomic

ANNOTATIONS, PROBLEMS = "annotations.json", "problems.csv"


def merge_parts(
    out: Path,
    image_ids: Mapping[str, Any],
    categories: Iterable[dict[str, Any]],
    info: dict[str, Any],
) -> tuple[int, int, int]:
    """Write both files, and return how many photos, annotations and problems they hold.

    Args:
        image_ids: of all photos by name, in the order in which they are written, so that the order
            in which they were done does not show.

    Raises:
        UserError: they cannot be written.
    """
    done = Done(out)
    counts = {"images": 0, "annotations": 0, "problems": 0}
    with atomic.staged_file(out / ANNOTATIONS) as file, file.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(list(categories))}')
        for section in ("images", "annotations"):
            stream.write(f',\n"{section}": [')
            for entry in done.entries(iter(image_ids)):
                for item in _items(section, entry, image_ids[entry["name"]]):
                    counts[section] += 1
                    if section == "annotations":
                        item = {"id": counts[section], **item}
                    stream.write("\n" if counts[section] == 1 else ",\n")
                    stream.write(json.dumps(item))
            stream.write("]")
        stream.write("}\n")
    with (
        atomic.staged_file(out / PROBLEMS) as file,
        file.open("w", encoding="utf-8", newline="") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(["image", "problem"])
        for entry in done.entries(iter(image_ids)):
            if "problem" in entry:
                counts["problems"] += 1
                table.writerow([entry["name"], entry["problem"]])
    return counts["images"], counts["annotations"], counts["problems"]


def _items(section: str, entry: dict[str, Any], image_id: Any) -> list[dict[str, Any]]:
    if "problem" in entry:
        return []
    if section == "images":
        size = {"width": entry["width"], "height": entry["height"]}
        return [{"id": image_id, "file_name": entry["name"], **size}]
    return [{"image_id": image_id, **annotation} for annotation in entry["annotations"]]
