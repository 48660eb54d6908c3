"""Which photos, and what is asked of each: a folder, a pattern, a text or CSV file, or COCO's."""

from __future__ import annotations

import csv
import glob
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bulk.coco_source import CocoFacts, read_coco
from structsam_export.bulk.task import OBJECT, Task, Tasks
from structsam_export.bundle.files import sha256_of
from structsam_export.predict.image_file import PHOTO_SUFFIXES
from structsam_export.predict.prompts import parse_box, parse_point

#: How columns of a CSV file may be called.
_NAME_COLUMNS = ("image", "file", "file_name", "path")
_BOX_COLUMNS, _POINT_COLUMNS = ("x0", "y0", "x1", "y1"), ("x", "y")


@dataclass(frozen=True)
class Source:
    """Photos in the order in which they are written, and what else a source says.

    Args:
        tasks: one a photo.
        digest: SHA-256 of the file that lists them; None for a folder or a pattern.
        categories: of a COCO file; else one, `object`.
        image_ids: of a COCO file, by the photo's name; else they are counted, from 1 on.
    """

    tasks: tuple[Task, ...]
    digest: str | None = None
    categories: tuple[dict[str, Any], ...] = (OBJECT,)
    image_ids: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_prompts(self) -> bool:
        """Whether a prompt is given for any photo."""
        return any(task.points or task.boxes for task in self.tasks)


def read_source(source: str | Path, photos: Path | None = None, out: Path | None = None) -> Source:
    """Read what is to be done.

    Args:
        source: a folder (with all below it), a pattern such as `photos/*.jpg` (`**` goes down), a
            photo, or a file: `.txt` with a photo a line, followed by its prompts, all separated by
            tabs, `x0,y0,x1,y1`, `x,y` or `x,y,label`; `.csv` with a column `image` and the columns
            `x0`, `y0`, `x1`, `y1`, or `x`, `y` and perhaps `label`, a row for each prompt; `.json`
            in COCO's form, whose boxes are the prompts.
        photos: the folder that names in a file are relative to; None takes the file's own.
        out: where results go: pictures below it are results, and no photos of a folder or pattern.

    Raises:
        UserError: nothing there, no photo, a file that is not of its form, or `photos` that is no
            folder or for no file.
    """
    path = Path(source)
    found = _found(path, out)
    if found is not None:
        if photos is not None:
            raise UserError(
                f"`photos=` is the folder of names in a .txt, .csv or .json file, and {path} is "
                "none. Leave it out"
            )
        return found
    readers: dict[str, Callable[[Path, Tasks], CocoFacts | None]] = {
        ".txt": _read_text,
        ".csv": _read_csv,
        ".json": read_coco,
    }
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path} is no source of photos. Give a folder, a pattern, a .txt or .csv file, or a "
            ".json file in COCO's form"
        )
    if photos is not None and not photos.is_dir():
        raise UserError(f"no folder {photos}. Give `photos=` the folder that {path} names files of")
    tasks = Tasks(photos or path.parent)
    try:
        coco = readers[path.suffix.lower()](path, tasks)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Check it") from None
    if not tasks.by_name:
        raise UserError(f"{path} names no photo. Put at least one into it")
    named = tuple(tasks.by_name.values())
    if coco is None:
        return Source(named, sha256_of(path))
    return Source(named, sha256_of(path), coco.categories, coco.image_ids)


def _found(path: Path, out: Path | None) -> Source | None:
    """Return what a folder, a pattern or a photo stands for; None for any other file."""
    if path.is_dir():
        return _of_files(path, path.rglob("*"), out)
    if not path.exists():
        pattern = str(path)
        if glob.has_magic(pattern):
            above = Path(*_before_magic(path.parts))
            return _of_files(above, map(Path, glob.iglob(pattern, recursive=True)), out)
        raise UserError(f"no photos at {path}: no such file or folder. Check the path")
    return Source((Task(path.name, path),)) if path.suffix.lower() in PHOTO_SUFFIXES else None


def _of_files(folder: Path, files: Iterable[Path], out: Path | None) -> Source:
    results = None if out is None else out.resolve()

    @cache  # links are followed once a folder, not once a photo
    def is_result(parent: Path) -> bool:
        return results is not None and parent.resolve().is_relative_to(results)

    photos = sorted(
        file
        for file in files
        if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file() and not is_result(file.parent)
    )
    if not photos:
        raise UserError(
            f"no photo in {folder}: looked for {', '.join(sorted(PHOTO_SUFFIXES))}. Check the path"
        )
    return Source(tuple(Task(photo.relative_to(folder).as_posix(), photo) for photo in photos))


def _before_magic(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _read_text(path: Path, tasks: Tasks) -> None:
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        name, *prompts = line.split("\t")
        if not name.strip() or name.startswith("#"):
            continue
        task = tasks.of(name.strip())
        for prompt in filter(None, map(str.strip, prompts)):
            try:
                if prompt.count(",") == 3:
                    task.boxes.append(parse_box(prompt))
                else:
                    task.points.append(parse_point(prompt))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None


def _read_csv(path: Path, tasks: Tasks) -> None:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        columns = rows.fieldnames or ()
        key = next((name for name in _NAME_COLUMNS if name in columns), None)
        if key is None:
            raise UserError(
                f"{path} has no column {' or '.join(_NAME_COLUMNS)} in its first line. Name the "
                "columns, for example image,x0,y0,x1,y1"
            )
        for row in rows:
            values = {name: (value or "").strip() for name, value in row.items() if name}
            task = tasks.of(values[key])
            try:
                if any(values.get(name) for name in _BOX_COLUMNS):
                    task.boxes.append(
                        parse_box(",".join(values.get(name, "") for name in _BOX_COLUMNS))
                    )
                if any(values.get(name) for name in _POINT_COLUMNS):
                    point = [values.get(name, "") for name in _POINT_COLUMNS]
                    task.points.append(parse_point(",".join([*point, values.get("label") or "1"])))
            except UserError as error:
                raise UserError(f"{path}, line {rows.line_num}: {error}") from None
