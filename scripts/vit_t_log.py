"""The run's CSV files and curve, for `train_vit_t.py`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from structsam_export.bundle.atomic import staged_file, write_text


def append_csv(path: Path, columns: Sequence[str], row: Sequence[Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(columns)
        writer.writerow(row)


def trim_csv(path: Path, step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint."""
    if path.exists():
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        kept = [
            row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step
        ]
        write_text(path, "\n".join([header, *kept]) + "\n")


def plot(out: Path) -> None:
    """curve.png from the two CSV files."""
    from matplotlib.figure import Figure

    def columns(name: str) -> dict[str, list[float]]:
        path = out / name
        if not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {key: [float(row[key]) for row in rows] for key in (rows[0] if rows else {})}

    train_rows, validation = columns("train.csv"), columns("validation.csv")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    if train_rows:
        axes.plot(train_rows["step"], train_rows["iou"], lw=0.6, color="0.7", label="training IoU")
    for key, colour in (("box_iou", "C0"), ("click_iou", "C1"), ("filled_box_iou", "0.3")):
        if validation:
            style = "--" if key == "filled_box_iou" else ".-"
            label = "validation, " + key.replace("_iou", "").replace("_", " ")
            axes.plot(validation["step"], validation[key], style, color=colour, label=label)
    axes.set(xlabel="step", ylabel="mean IoU", ylim=(0, 1), title="vit_t")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with staged_file(out / "curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
