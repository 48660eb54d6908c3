"""Reads a results folder for summaries: columns of numbers, and what is not whole."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.results import (
    LONGEST_CELL,
    RLE_COLUMNS,
    ROW_COLUMNS,
    rows_path,
    timing_path,
)

#: `format` of the `evaluation.json` that is understood here.
FORMAT = 1
_SECTIONS = {"model": dict, "dataset": dict, "protocol": dict, "runs": list}


class StoredColumn(Sequence[str]):
    """Cells of one column, read from the file when they are asked for: masks fill no memory.

    Args:
        path: the file of rows.
        column: number of the column.
        offsets: int [M], where the line of each mask begins, in bytes.
    """

    def __init__(self, path: Path, column: int, offsets: np.ndarray) -> None:
        self._path, self._column, self._offsets = path, column, offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with self._path.open("rb") as stream:
            stream.seek(int(self._offsets[index]))
            line = stream.readline().decode()
        return next(csv.reader([line]))[self._column]


@dataclass(eq=False)
class RunRows:
    """The whole images of one run, a mask after the other.

    Args:
        name: of the run.
        metrics: names of the K metric columns.
        image_ids: of the I whole images, in the order of the file.
        image: int [M], the image of each mask, in 0..I-1.
        objects: object id of each mask.
        prompts: area of the truth and prompt box of each mask, as written: equal in two runs
            that were asked the same.
        categories: of each mask; "" where the set has none.
        areas: float [M], pixels of the truth.
        crowd: bool [M], crowd regions.
        scored: bool [M]; False for crowds, for objects that were not prompted and for detections
            without an object: their values are NaN by rule.
        values: float [M, K]; NaN where the metric says nothing.
        sizes: (H, W) of each mask's image.
        scores: predicted IoU of each mask.
        rle, truth_rle: COCO counts of each mask, "" where there is none; empty unless asked for.
        partial: images that were left out because rows are missing or doubled.
        damaged: lines that were left out because they break off.
    """

    name: str
    metrics: tuple[str, ...]
    image_ids: list[str] = field(default_factory=list)
    image: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    objects: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    scored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    sizes: list[tuple[int, int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    rle: Sequence[str] = ()
    truth_rle: Sequence[str] = ()
    partial: list[str] = field(default_factory=list)
    damaged: int = 0


def read_facts(folder: Path) -> dict[str, Any]:
    """Return `evaluation.json` of a results folder.

    Raises:
        UserError: no results folder, or one of another version.
    """
    path = folder / "evaluation.json"
    advice = "Give a folder that `structsam-export evaluate ... --out FOLDER` wrote"
    if not path.is_file():
        raise UserError(f"{folder} is no results folder: it has no evaluation.json. {advice}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). {advice}") from None
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found!r}, expected {FORMAT}: it comes from another version of "
            "structsam. Evaluate again, or read it with the version that wrote it"
        )
    for key, kind in _SECTIONS.items():
        if not isinstance(facts.get(key), kind):
            raise UserError(f"{path} has no {key!r}: the file is incomplete. {advice}")
    if not facts["runs"]:
        raise UserError(f"{path} names no run: nothing was evaluated yet. {advice}")
    return facts


def read_rows(folder: Path, run: str, with_rle: bool = False) -> RunRows | None:
    """Read the rows of a run; None where there are none yet.

    Keeps about 100 bytes per mask; run lengths stay in the file.

    Raises:
        UserError: other columns, or a cell that is no number.
    """
    path = rows_path(folder, run)
    if not path.is_file():
        return None
    lines = _lines(path)
    _, header = next(lines, (0, None))
    if not header:
        return None
    missing = [name for name in (*ROW_COLUMNS, *RLE_COLUMNS) if name not in header]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}: it comes from another version of "
            "structsam. Evaluate again into a new folder"
        )
    known = (*ROW_COLUMNS, *RLE_COLUMNS)
    found = RunRows(run, tuple(name for name in header if name not in known))
    records = []
    for number, (offset, cells) in enumerate(lines, start=2):
        if cells is None or len(cells) != len(header):
            found.damaged += 1
            continue
        row = dict(zip(header, cells, strict=True))
        records.append(_record(row, found.metrics, offset, f"{path}, line {number}"))
    kept = _fill(found, records)
    if with_rle:
        offsets = np.array([record.offset for record in kept], np.int64)
        found.rle, found.truth_rle = (
            StoredColumn(path, header.index(name), offsets) for name in ("rle", "truth_rle")
        )
    return found


def read_latency(folder: Path, run: str) -> np.ndarray:
    """Return the encoder's time per image in ms, [I]; empty where none was written."""
    path = timing_path(folder, run)
    if not path.is_file():
        return np.zeros(0)
    lines = _lines(path)
    header = next(lines, (0, None))[1] or []
    if "encode_ms" not in header:
        return np.zeros(0)
    column = header.index("encode_ms")
    cells = [line[column] for _, line in lines if line and len(line) == len(header)]
    return np.array([_number(cell, str(path)) for cell in cells if cell])


@dataclass(slots=True)
class _Record:
    image_id: str
    object_id: str
    objects: int
    category: str
    size: tuple[int, int]
    area: float
    prompt: str
    score: float
    crowd: bool
    scored: bool
    values: tuple[float, ...]
    offset: int


def _record(row: dict[str, str], metrics: Sequence[str], offset: int, where: str) -> _Record:
    crowd = row["crowd"] not in ("0", "")
    scored = bool(row["box"] and row["truth_rle"]) and not crowd
    values = [_number(row[name], where) if row[name] else np.nan for name in metrics]
    return _Record(
        row["image_id"],
        row["object_id"],
        _count(row["objects"], where),
        row["category"],
        (_count(row["height"], where), _count(row["width"], where)),
        _number(row["area"], where),
        f"{row['area']} {row['box']}",
        _number(row["score"] or "0", where),
        crowd,
        scored,
        tuple(values if scored else [np.nan] * len(metrics)),
        offset,
    )


def _fill(found: RunRows, records: list[_Record]) -> list[_Record]:
    """Sort records into whole images and others; return those of whole images."""
    rows, distinct = Counter(r.image_id for r in records), Counter[str]()
    for image_id, _ in {(r.image_id, r.object_id) for r in records}:
        distinct[image_id] += 1
    broken = {
        r.image_id for r in records if not rows[r.image_id] == distinct[r.image_id] == r.objects
    }
    found.partial = [name for name in rows if name in broken]
    found.image_ids = [name for name in rows if name not in broken]
    index = {name: i for i, name in enumerate(found.image_ids)}
    kept = [r for r in records if r.image_id in index]
    found.image = np.array([index[r.image_id] for r in kept], np.int64)
    found.objects = [r.object_id for r in kept]
    found.prompts = [r.prompt for r in kept]
    found.categories = [r.category for r in kept]
    found.areas = np.array([r.area for r in kept])
    found.crowd = np.array([r.crowd for r in kept], bool)
    found.scored = np.array([r.scored for r in kept], bool)
    found.values = np.array([r.values for r in kept], float).reshape(len(kept), len(found.metrics))
    found.sizes = [r.size for r in kept]
    found.scores = [r.score for r in kept]
    return kept


def _lines(path: Path) -> Iterator[tuple[int, list[str] | None]]:
    """Yield where each line begins and its cells; None for a last line that breaks off."""
    csv.field_size_limit(LONGEST_CELL)
    offset = 0
    with path.open("rb") as stream:
        for raw in stream:
            line = raw.decode("utf-8", "replace")
            yield offset, next(csv.reader([line]), []) if line.endswith("\n") else None
            offset += len(raw)


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise _damaged(cell, "number", where) from None


def _count(cell: str, where: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise _damaged(cell, "whole number", where) from None


def _damaged(cell: str, wanted: str, where: str) -> UserError:
    return UserError(
        f"{where}: {cell!r} is no {wanted}; the file is damaged. Delete it and evaluate this run "
        "again"
    )
