#!/usr/bin/env python3
"""Does merging preserve structure? The table of docs/fidelity.md, one line a method and variant.

    python scripts/spectrum_study.py OUT.jsonl PHOTO... [--rate 0.5]

Three senses of structure, each at the same tokens removed:

- the spectrum of the graph of cosines, and the cosine inside slots (`structsam.spectrum`);
- the spectrum of the grid: tokens joined to their four neighbours, windows of 14x14 tokens;
- objects: removed tokens whose slot holds tokens of several segments, where ../masks/NAME.png
  beside the folder has segments (a token belongs to the segment of most of its pixels).

ViT-T with its weights. OUT.jsonl gets a line per photo and variant and is added to; the table has
means over photos, with 95 % bootstrap intervals. Some two minutes of one core a photo.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import window_partition
from torch import Tensor

import structsam
from structsam.apply import merged_blocks
from structsam.evaluation.bootstrap import interval
from structsam.models import model_spec
from structsam.plans.plan import MergePlan
from structsam.recording import record_plans
from structsam.spectrum import coarse_laplacian, coarsen, normalized_laplacian, spectral_distance
from structsam_export.inspect.spectrum import spectrum_choices, spectrum_study
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "structsam": ("structsam", {}),
    "structsam, channels=all": ("structsam", {"channels": "all"}),
    "structsam, flatness=mean": ("structsam", {"flatness": "mean"}),
    "structsam, cells=random": ("structsam", {"cells": "random"}),
    "structsam, variant=no_cell": ("structsam", {"variant": "no_cell"}),
    "algm": ("algm", {}),
    "tome": ("tome", {}),
    "pitome": ("pitome", {}),
    "tomesd": ("tomesd", {}),
    "gradtome": ("gradtome", {}),
}
SIDE, PIXELS, GRID, WINDOW = 1024, 16, 64, 14
OUTSIDE, PADDING = -1, -2  # of the photo, but in the picture; of the grid, in windows
COLUMNS = ("cosine_graph", "dissimilarity", "grid_graph", "grid_low", "crossing")


def plans_of(sam: Sam, image: Tensor) -> list[tuple[MergePlan, int]]:
    """Encode with merging; return every block's plan and window size."""
    with record_plans(sam) as merging:
        sam.image_encoder(image)
    sizes = [block.window_size for block in merged_blocks(sam)]
    return [(found.plan, sizes[index]) for index, found in merging.items()]


def segments_of(path: Path) -> Tensor:
    """The segment of every token, [64, 64] int64; `OUTSIDE` below or beside the photo."""
    with Image.open(path) as file:
        labels = np.asarray(file).astype(np.int32)
    scale = SIDE / max(labels.shape)
    height, width = (int(side * scale + 0.5) for side in labels.shape)
    square = np.full((SIDE, SIDE), OUTSIDE, np.int64)
    resized = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    square[:height, :width] = np.asarray(resized)
    patches = square.reshape(GRID, PIXELS, GRID, PIXELS).swapaxes(1, 2)
    return torch.from_numpy(patches.reshape(GRID, GRID, -1)).mode().values


def crossing_of(plan: MergePlan, segment: Tensor) -> tuple[int, int]:
    """Removed tokens of the photo whose slot holds several segments, and all removed ones.

    Args:
        segment: [B, N] int64; tokens below 0 count for nothing.
    """
    slot, slots = plan.slot_of_token, plan.num_slots
    size = torch.zeros(len(slot), slots, dtype=torch.int64)
    size.scatter_add_(1, slot, (segment >= 0).long())
    none = torch.iinfo(torch.int64)
    lowest = torch.full_like(size, none.max)
    lowest.scatter_reduce_(1, slot, segment.where(segment >= 0, none.max), "amin")
    highest = torch.full_like(size, none.min).scatter_reduce_(1, slot, segment, "amax")
    removed = (size - 1).clamp(min=0)
    return int(removed[lowest < highest].sum()), int(removed.sum())


@cache
def window_grid() -> tuple[Tensor, Tensor]:
    """Weights [1, 196, 196] of the grid of four neighbours in a window, and its spectrum."""
    place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    steps = (place[:, None] - place).abs().sum(-1)
    weights = (steps == 1).double()[None]
    return weights, torch.linalg.eigvalsh(normalized_laplacian(weights))


def grid_distance(plan: MergePlan) -> tuple[float, float]:
    """How far merging moves the grid's spectrum: all eigenvalues, and the ten lowest above 0.

    Args:
        plan: of the 25 windows of an image; the 16 without padding count.
    """
    inside = [row * 5 + column for row in range(4) for column in range(4)]
    slot = plan.slot_of_token[inside]
    weights, before = window_grid()
    coarse = coarse_laplacian(*coarsen(weights.expand(len(slot), -1, -1), slot, plan.num_slots))
    own = torch.linalg.eigvalsh(coarse)
    ones = own.new_ones(len(slot), slot.shape[1] - plan.num_slots)  # Lemma 1
    after = torch.cat([own, ones], 1).sort(1).values
    low = (before[:, 1:11] - after[:, 1:11]).abs().sum(1)
    return spectral_distance(before, after).mean().item(), low.mean().item()


def measure(sam: Sam, photo: Path, rate: float, variant: str) -> dict[str, Any]:
    """One line of OUT.jsonl."""
    method, options = VARIANTS[variant]
    pixels = preprocess(read_image(photo), model_spec("vit_t").preprocessing)[0]
    merging = spectrum_choices(model_spec("vit_t"), method, rate, options=options)
    (row,) = spectrum_study(sam, [pixels], merging)
    if row.note:
        return {"note": row.note}
    structsam.apply_merging(sam, merging[0].config)
    plans = plans_of(sam, torch.from_numpy(pixels))
    grids = [grid_distance(plan) for plan, size in plans if size]
    crossed, removed = 0, 0
    masks = photo.parent.parent / "masks" / f"{photo.stem}.png"
    if masks.exists():
        map_ = segments_of(masks)[None, :, :, None]
        cut = window_partition((map_ - PADDING).float(), WINDOW)[0].long() + PADDING
        for plan, size in plans:
            segment = (cut if size else map_).flatten(1)
            counted = crossing_of(plan, segment)
            crossed, removed = crossed + counted[0], removed + counted[1]
    return {
        "cosine_graph": row.encoder,
        "dissimilarity": row.dissimilarity,
        "grid_graph": float(np.mean([all_ for all_, _ in grids])),
        "grid_low": float(np.mean([low for _, low in grids])),
        "crossing": 100 * crossed / removed if removed else None,
        "blocks": [block.discrepancy for block in row.blocks],
        "global": [block.kind == "global" for block in row.blocks],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over photos with intervals, a line per rate and variant."""
    lines = ["| variant | rate | photos | " + " | ".join(COLUMNS) + " |", "|---" * 8 + "|"]
    for rate, variant in dict.fromkeys((row["rate"], row["variant"]) for row in rows):
        own = [r for r in rows if (r["rate"], r["variant"]) == (rate, variant) and "note" not in r]
        cells = []
        for column in COLUMNS:
            values = np.array([r[column] for r in own if r[column] is not None])
            if len(values) < 2:
                cells.append("" if not len(values) else f"{values[0]:.3g}")
                continue
            found = interval(values, np.ones(len(values)))
            cells.append(f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
        if own:
            lines.append(f"| {variant} | {rate:g} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--rate", type=float, default=0.5)
    given = parser.parse_args()
    given.out.touch()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()]
    done = {(row["photo"], row["variant"], row["rate"]) for row in rows}
    sam = structsam.load_sam("vit_t")
    for photo in given.photos:
        for variant in VARIANTS:
            key = (str(photo), variant, given.rate)
            if key in done:
                continue
            with torch.inference_mode():
                found = measure(sam, photo, given.rate, variant)
            rows.append(dict(zip(("photo", "variant", "rate"), key, strict=True)) | found)
            with given.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
