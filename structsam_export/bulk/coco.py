"""Parts -> `annotations.json` in COCO's form and two tables, written as they are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from structsam_export.bulk.parts import Done
from structsam_export.bundle import atomic

ANNOTATIONS, PROBLEMS, NOTES = "annotations.json", "problems.csv", "notes.csv"


def merge_parts(
    out: Path,
    image_ids: Mapping[str, Any],
    categories: Iterable[dict[str, Any]],
    info: dict[str, Any],
) -> tuple[int, int, int, int]:
    """Write the files; return how many photos, annotations, problems, and photos with notes.

    Args:
        image_ids: of all photos by name, in the order in which they are written, so that the order
            in which they were done does not show.

    Raises:
        UserError: they cannot be written.
    """
    done = Done(out)
    counts = {"images": 0, "annotations": 0}
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
    for name, key, column in ((PROBLEMS, "problem", "problem"), (NOTES, "notes", "note")):
        found = (entry for entry in done.entries(iter(image_ids)) if entry.get(key))
        counts[key] = _write_table(out / name, column, ((e["name"], e[key]) for e in found))
    return counts["images"], counts["annotations"], counts["problem"], counts["notes"]


def _write_table(final: Path, column: str, found: Iterable[tuple[str, str | list[str]]]) -> int:
    """Write a row for every sentence about a photo; return how many photos have some.

    A name that is no Unicode is written with escapes.
    """
    count = 0
    with (
        atomic.staged_file(final) as file,
        file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(["image", column])
        for name, told in found:
            count += 1
            table.writerows((name, one) for one in ([told] if isinstance(told, str) else told))
    return count


def _items(section: str, entry: dict[str, Any], image_id: Any) -> list[dict[str, Any]]:
    if "problem" in entry:
        return []
    if section == "images":
        size = {"width": entry["width"], "height": entry["height"]}
        return [{"id": image_id, "file_name": entry["name"], **size}]
    return [{"image_id": image_id, **annotation} for annotation in entry["annotations"]]
