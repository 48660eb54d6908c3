"""A results folder: rows as they come, so that a killed run goes on where it stopped.

OUT/evaluation.json    what was asked, of which model, on which images (written by the caller)
OUT/rows/RUN.csv       one line per mask
OUT/timing/RUN.csv     one line per image, written after the image's rows: the list of what
                       is done; times stay out of the rows, which are the same in every run
OUT/problems.csv       what was left out, and why
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from structsam.errors import UserError
from structsam.evaluation.sample import Problem

ROW_COLUMNS = (
    "image_id", "object_id", "objects", "category", "height", "width", "area", "box", "score",
    "crowd",
)  # fmt: skip
RLE_COLUMNS = ("rle", "truth_rle")
TIMING_COLUMNS = ("image_id", "rows", "preprocess_ms", "encode_ms", "decode_ms")
#: csv refuses cells above 128 KiB; the run lengths of a noisy mask are longer.
LONGEST_CELL = 2**31 - 1
PROBLEM_COLUMNS = ("image_id", "kind", "detail")


def rows_path(folder: Path, run: str) -> Path:
    """Return where the rows of a run lie."""
    return _file_of(folder, "rows", run)


def timing_path(folder: Path, run: str) -> Path:
    """Return where the times of a run lie."""
    return _file_of(folder, "timing", run)


def _file_of(folder: Path, kind: str, run: str) -> Path:
    """Refuse a name that leads out of the folder: it may come from a bundle, or from a record."""
    if PureWindowsPath(run).name != run or run in ("", ".", ".."):
        raise UserError(
            f"{run!r} is no name for a run in {folder}: its results would lie elsewhere. Use the "
            "bundle or results of someone you trust, and names without slashes"
        )
    return folder / kind / f"{run}.csv"


class RunFiles:
    """Rows and times of one run. Opening drops what an interrupted run left of its last image.

    Args:
        folder: the results folder.
        name: of the run.
        metrics: names of the columns between `ROW_COLUMNS` and `RLE_COLUMNS`.

    Raises:
        UserError: the file there has other columns.
    """

    def __init__(self, folder: Path, name: str, metrics: Sequence[str]) -> None:
        self.columns = (*ROW_COLUMNS, *metrics, *RLE_COLUMNS)
        self.rows, self.timing = rows_path(folder, name), timing_path(folder, name)
        for path in (self.rows, self.timing):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.done = self._repair()

    def _repair(self) -> set[str]:
        """Keep the images of which every row is there once; the others are done again."""
        wanted = {row["image_id"]: row["rows"] for row in _whole_rows(self.timing, TIMING_COLUMNS)}
        found: dict[str, list[str]] = {name: [] for name in wanted}
        for row in _whole_rows(self.rows, self.columns):
            found.setdefault(row["image_id"], []).append(row["object_id"])
        done = {
            name
            for name, count in wanted.items()
            if str(len(found[name])) == count and len(set(found[name])) == len(found[name])
        }
        _rewrite(self.timing, TIMING_COLUMNS, done, "image_id")
        _rewrite(self.rows, self.columns, done, "object_id")
        return done

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Return those of `image_ids` that are not done yet, in their order."""
        return [name for name in image_ids if name not in self.done]

    def append(self, rows: Sequence[Mapping[str, Any]], timing: Mapping[str, Any]) -> None:
        """Write one image: its rows first, then the line that says it is done."""
        _append(self.rows, self.columns, rows)
        _append(self.timing, TIMING_COLUMNS, [timing])
        self.done.add(str(timing["image_id"]))


class ProblemFile:
    """`problems.csv`: every problem once, whichever run met it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "problems.csv"
        rows = list(_whole_rows(self.path, PROBLEM_COLUMNS))
        self.known = {tuple(row[column] for column in PROBLEM_COLUMNS) for row in rows}
        _rewrite(self.path, PROBLEM_COLUMNS, None, "detail")

    def add(self, problems: Iterable[Problem]) -> None:
        """Write down those that are not known yet."""
        told = {(p.image_id, p.kind, p.detail) for p in problems}
        found = {tuple(" ".join(cell.split()) for cell in cells) for cells in told} - self.known
        _append(
            self.path,
            PROBLEM_COLUMNS,
            [dict(zip(PROBLEM_COLUMNS, row, strict=True)) for row in sorted(found)],
        )
        self.known |= found

    def sorted(self) -> list[dict[str, str]]:
        """Return all, by image."""
        return [dict(zip(PROBLEM_COLUMNS, row, strict=True)) for row in sorted(self.known)]


def _whole_rows(path: Path, columns: Sequence[str]) -> Iterable[dict[str, str]]:
    """Lines of a CSV file that were written to their end; one may break inside a character."""
    if not path.exists():
        return
    csv.field_size_limit(LONGEST_CELL)
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        header = stream.readline()
        if not header.endswith("\n"):
            return  # interrupted while the file was made
        found = tuple(next(csv.reader([header])))
        if found != tuple(columns):
            raise UserError(
                f"{path} has the columns {', '.join(found)}, expected {', '.join(columns)}: it is "
                "from another evaluation. Choose another `out=`"
            )
        for line in stream:
            if not line.endswith("\n"):
                return
            values = next(csv.reader([line]))
            if len(values) == len(columns):
                yield dict(zip(columns, values, strict=True))


def _rewrite(path: Path, columns: Sequence[str], keep: set[str] | None, key: str) -> None:
    """Keep the whole lines, of the images in `keep` if that is given, each image and key once."""
    if not path.exists():
        return
    temporary, seen = path.with_suffix(".tmp"), set()
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row in _whole_rows(path, columns):
            place = (row["image_id"], row[key])
            if place not in seen and (keep is None or row["image_id"] in keep):
                seen.add(place)
                writer.writerow(row)
    os.replace(temporary, path)


def _append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines in one write, with the header before the first."""
    if not rows and path.exists():
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerows(rows)
    try:
        with path.open("a", newline="", encoding="utf-8") as stream:
            stream.write(text.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}). Free space, and run again") from (
            error
        )
