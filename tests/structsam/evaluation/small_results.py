"""Writes results folders by hand: squares as masks, so that every score can be checked on paper."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

COLUMNS = (
    "image_id", "object_id", "objects", "category", "height", "width", "area", "box", "score",
    "crowd",
)  # fmt: skip
SIZE = (40, 60)
METHOD = {"layers": "all", "placement": "attention", "options": {}}


def square(x: int, y: int, width: int, height: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A rectangle of set pixels in a bool mask [H, W]."""
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def rle(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode("ascii")


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def run_facts(name: str, method: str | None = None, rate: float = 0.0, **more: Any) -> dict:
    """An entry of `runs`; without a method it is unmerged."""
    merging = None if method is None else {"method": method, "rate": rate, **METHOD}
    return {
        "name": name,
        "label": "unmerged" if method is None else f"{method} {rate:g}",
        "merging": merging,
        "backend": "torch",
        "precision": "fp32",
        "gmac": round(40 * (1 - 0.4 * rate), 2),
        "kept_tokens": {"window": 1 - rate, "global": 1 - rate, "all": 1 - rate},
        "complete": True,
        **more,
    }


def row_of(
    image_id: str, object_id: str, objects: int, truth: np.ndarray, predicted: np.ndarray, **more
) -> dict[str, Any]:
    """One line; `iou` is computed, `boundary_iou` is 0.1 below it, and `more` replaces cells."""
    value = iou(predicted, truth) if truth.any() else float("nan")
    return {
        "image_id": image_id,
        "object_id": object_id,
        "objects": objects,
        "category": "",
        "height": truth.shape[0],
        "width": truth.shape[1],
        "area": int(truth.sum()),
        "box": "1 2 3 4",
        "score": "0.9",
        "crowd": 0,
        "iou": f"{value:.6g}",
        "boundary_iou": f"{max(value - 0.1, 0):.6g}",
        "rle": rle(predicted),
        "truth_rle": rle(truth),
        **more,
    }


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """`rows/NAME.csv`; the metric columns are whatever the rows have."""
    metrics = [key for key in rows[0] if key not in (*COLUMNS, "rle", "truth_rle")]
    path = folder / "rows" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        columns = [*COLUMNS, *metrics, "rle", "truth_rle"]
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_times(folder: Path, name: str, encode_ms: list[float]) -> None:
    path = folder / "timing" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"image{i},1,1.5,{ms},2.5" for i, ms in enumerate(encode_ms)]
    header = "image_id,objects,preprocess_ms,encode_ms,decode_ms"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def write_facts(folder: Path, runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """`evaluation.json`; `more` replaces sections."""
    facts = {
        "format": 1,
        "structsam": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "structsam-export evaluate --model vit_t --dataset segments --root squares",
        "model": {"name": "vit_t", "weights": "embedded", "sha256": "ab" * 32},
        "dataset": {"name": "segments", "title": "squares", "root": "squares", "images": 4},
        "protocol": {
            "name": "sam", "title": "SAM: long side 1024, padded, tight box", "prompt": "box",
            "box_noise": 0.0, "multimask": False, "max_objects": 5, "smallest": 0.001, "seed": 0,
        },
        "machine": {"cpu": "a processor", "gpu": None, "threads": 2},
        "runs": runs,
        "problems": [],
        **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def two_runs(folder: Path, **more: Any) -> Path:
    """Four images, five masks; truth is 10x10 everywhere, masks are 10 high and N wide.

    Baseline widths 10 10 | 8 | 6 | 10 give IoU 1, 1, 0.8, 0.6, 1: mean 0.88.
    Merged widths 10 5 | 8 | 6 | 4 give IoU 1, 0.5, 0.8, 0.6, 0.4: mean 0.66, difference -0.22.
    Disagreement 0, 0.5, 0, 0, 0.6: mean 0.22.
    """
    widths = {"unmerged": [10, 10, 8, 6, 10], "structsam-r0.50": [10, 5, 8, 6, 4]}
    where = [("a", "1", 2), ("a", "2", 2), ("b", "1", 1), ("c", "1", 1), ("d", "1", 1)]
    for name, every in widths.items():
        rows = []
        for (image, number, objects), width in zip(where, every, strict=True):
            x = 15 * int(number)
            truth, found = square(x, 20, 10, 10), square(x, 20, width, 10)
            rows.append(row_of(image, number, objects, truth, found))
        write_rows(folder, name, rows)
    write_times(folder, "unmerged", [100.0, 200.0, 300.0, 400.0])
    write_times(folder, "structsam-r0.50", [50.0, 60.0, 70.0, 80.0])
    runs = [run_facts("structsam-r0.50", "structsam", 0.5), run_facts("unmerged")]
    write_facts(folder, runs, **more)
    return folder
