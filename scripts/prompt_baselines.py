#!/usr/bin/env python3
"""What a prompt alone is worth: the box filled, GrabCut from the box, and the best disc.

    python scripts/prompt_baselines.py DATA/test/voc DATA/test/coco --limit 40 --max-objects 5

A model that does not beat these has not learned to see. Objects and prompts are chosen as
`structsam-export evaluate` chooses them with the same `--limit`, `--max-objects` and `--smallest`.
The disc lies around the object's innermost point; its radius, a constant share of the image's
diagonal, is the one that scores best on the set itself. Needs `pip install opencv-python-headless`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.bootstrap import interval
from structsam.evaluation.datasets import open_dataset
from structsam.evaluation.evaluate import Setting, choose_objects, evenly
from structsam.evaluation.metrics import find_metric
from structsam.evaluation.prompts import innermost
from structsam.evaluation.protocols import PROTOCOLS, tight_box
from structsam.evaluation.sample import ObjectMask, ProblemError, Sample

_RADII = np.geomspace(0.01, 0.5, 24)  # shares of the diagonal
_ROUNDS = 5


def filled_box(sample: Sample, each: ObjectMask) -> np.ndarray:
    """All pixels of the tight box, bool [H, W]."""
    x0, y0, x1, y1 = map(int, tight_box(each.mask))
    filled = np.zeros(each.mask.shape, bool)
    filled[y0:y1, x0:x1] = True
    return filled


def grabcut(sample: Sample, each: ObjectMask) -> np.ndarray:
    """OpenCV's GrabCut, five rounds from the tight box, bool [H, W]."""
    import cv2

    x0, y0, x1, y1 = map(int, tight_box(each.mask))
    found = np.zeros(each.mask.shape, np.uint8)
    if filled_box(sample, each).all():
        return np.ones(each.mask.shape, bool)  # GrabCut needs background
    cv2.setRNGSeed(0)
    state = np.zeros((2, 1, 65))
    photo = np.ascontiguousarray(sample.image[..., ::-1])
    cv2.grabCut(
        photo, found, (x0, y0, x1 - x0, y1 - y0), state[0], state[1], _ROUNDS,
        cv2.GC_INIT_WITH_RECT,
    )  # fmt: skip
    mask: np.ndarray = (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)
    return mask


def disc_ious(sample: Sample, each: ObjectMask) -> np.ndarray:
    """IoU of discs of all radii around the innermost point, [len(_RADII)]."""
    x, y = innermost(each.mask)
    height, width = each.mask.shape
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(rows - y, columns - x) / np.hypot(height, width)
    iou = find_metric("iou")()
    return np.array([iou(away <= r, each.mask, sample.valid) for r in _RADII])


def measure(setting: Setting, limit: int | None) -> dict[str, object]:
    """Mean IoU with 95 % intervals over the images of one set."""
    iou = find_metric("iou")()
    rules: dict[str, Callable[[Sample, ObjectMask], np.ndarray]] = {
        "filled box": filled_box,
        "GrabCut": grabcut,
    }
    sums: dict[str, list[float]] = {name: [] for name in rules}
    discs, counts = [], []
    names = evenly(setting.dataset.image_ids, limit)
    for done, name in enumerate(names, start=1):
        try:
            sample = setting.dataset.load(name)
        except ProblemError:
            continue
        objects, _ = choose_objects(sample, setting)
        counts.append(len(objects))
        for rule, predict in rules.items():
            values = [iou(predict(sample, o), o.mask, sample.valid) for o in objects]
            sums[rule].append(float(np.sum(values)))
        discs.append(
            np.sum([disc_ious(sample, o) for o in objects], axis=0) + np.zeros(len(_RADII))
        )
        print(f"\r{setting.dataset.root}: {done} of {len(names)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    best = int(np.sum(discs, axis=0).argmax())
    sums["best disc"] = [float(row[best]) for row in discs]
    table: dict[str, object] = {"images": len(counts), "objects": int(np.sum(counts))}
    for rule, values in sums.items():
        table[rule] = asdict(interval(np.array(values), np.array(counts)))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="+", type=Path, help="folders with images/ and masks/")
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-objects", type=int, default=10)
    parser.add_argument("--smallest", type=float, default=0.001)
    options = parser.parse_args(argv)
    try:
        for root in options.root:
            setting = Setting(
                open_dataset(options.dataset, root),
                PROTOCOLS["sam"],
                (),
                smallest=options.smallest,
                max_objects=options.max_objects,
            )
            print(json.dumps({"set": root.name} | measure(setting, options.limit)), flush=True)
    except (UserError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
