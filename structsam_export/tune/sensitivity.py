"""What merging each block alone costs, measured once, row by row, so that a stopped run goes on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.tune.merging_loss import Loss, LossMeter

if TYPE_CHECKING:
    from structsam.config import MergeConfig

_COLUMNS = ("image", "block", "rate", "embedding", "masks", "ms")
#: Told what is done, how much of it, of how much.
Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]


def sensitivities(
    meter: LossMeter,
    base: MergeConfig,
    rates: Sequence[float],
    photos: Sequence[Path],
    path: Path,
    progress: Progress,
    note: Note,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and median ms, both [B, R], of merging each block alone; rows go to `path`.

    What lies there from a search that was stopped is used again, and `note` is told.
    """
    depth = len(meter.sam.image_encoder.blocks)
    known = {(r["image"], int(r["block"]), float(r["rate"])): r for r in _read_rows(path)}
    total, done = len(photos) * depth * len(rates), 0
    if reused := sum((p.name, b, r) in known for p in photos for b in range(depth) for r in rates):
        note(f"{path}: {reused} of {total} measurements are there already; the rest run")
    loss, times = np.zeros((2, len(photos), depth, len(rates)))
    for number, photo in enumerate(photos):
        for block in range(depth):
            for column, rate in enumerate(rates):
                row = known.get((photo.name, block, rate))
                if row is None:
                    row = _measured(meter, base, photo, block, rate, depth)
                    _append_row(path, row)
                loss[number, block, column] = float(row["embedding"]) + float(row["masks"])
                times[number, block, column] = float(row["ms"])
                done += 1
                progress(f"merging block by block ({base.placement})", done, total)
    return loss.mean(0), np.median(times, 0)


def _measured(
    meter: LossMeter, base: MergeConfig, photo: Path, block: int, rate: float, depth: int
) -> dict[str, str]:
    config = replace(base, rate=tuple(rate if i == block else 0.0 for i in range(depth)))
    found = meter.losses(config, photo, block) if rate else Loss(0.0, 0.0)
    numbers = (found.embedding, found.masks, meter.milliseconds(config, photo, block))
    cells = (photo.name, str(block), repr(rate), *(f"{number:.6g}" for number in numbers))
    return dict(zip(_COLUMNS, cells, strict=True))


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Make the folder this search's own, or refuse one of another search."""
    path = folder / "tune.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Choose another `out=`") from None
        if found != json.loads(json.dumps(asked)):
            raise UserError(
                f"{folder} holds a search with other photos, rates, weights or merging. Choose "
                "another `out=`, or remove that folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no search. Choose another `out=`, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(asked, indent=1) + "\n")


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Whole lines of the table; what an interruption left of the last one is cut off."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        atomic.write_text(path, whole)
    yield from csv.DictReader(whole.splitlines())


def _append_row(path: Path, row: Mapping[str, str]) -> None:
    fresh = not path.exists() or not path.stat().st_size
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    if fresh:
        writer.writeheader()
    writer.writerow(row)
    with path.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text.getvalue())
