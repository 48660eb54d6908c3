#!/usr/bin/env python3
"""Masks of the unmerged model as truth for photos without annotation, for `evaluate`.

    python scripts/pseudo_masks.py PHOTOS OUT [--model M] [--checkpoint FILE] [--side N]

A grid of N x N points (default 12) is asked for with the model at its trained size in FP32; of
masks that overlap the one of higher predicted IoU stays. OUT/images holds copies of the photos,
OUT/masks a label per object. What other encoders score against them is agreement with that model,
no quality.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle.atomic import staged_folder
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.predict.image_file import read_image
from structsam_export.predict.predictor import Predictor
from structsam_export.tune.sure_objects import grid_points, sure_objects

_MASKS = 20  # a photo


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="vit_t")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--side", type=int, default=12)
    asked = parser.parse_args()
    try:
        make(asked.photos, asked.out, ModelSource(asked.model, asked.checkpoint), asked.side)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make(photos: Path, out: Path, source: ModelSource, side: int) -> None:
    from structsam.apply import apply_merging
    from structsam_export.runtimes.torch_backend import InMemoryBackend
    from structsam_export.runtimes.torch_on_cpu import use_fast_settings

    if not photos.is_dir():
        raise UserError(f"{photos} is no folder. Give a folder of photos")
    files = sorted(p for p in photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise UserError(f"no photos in {photos}")
    if len({file.stem for file in files}) < len(files):
        raise UserError(
            f"photos in {photos} differ in their ending only, and their masks would have one name. "
            "Rename them"
        )
    source.require()
    use_fast_settings()
    backend = InMemoryBackend(apply_merging(source.load(), rate=0.0), "fp32")
    bundle = backend.in_memory_bundle(source.spec.preprocessing)
    with staged_folder(out) as folder, Predictor(bundle, backend) as predictor:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        for file in files:
            labels = labels_of(predictor, read_image(file), side)
            shutil.copyfile(file, folder / "images" / file.name)
            Image.fromarray(labels).save(folder / "masks" / f"{file.stem}.png")
            print(f"{file.name}: {labels.max()} masks", file=sys.stderr)


def labels_of(predictor: Predictor, rgb: np.ndarray, side: int) -> np.ndarray:
    """Label objects from 1 on, uint8 [H, W]; the surest are drawn first, and keep their pixels."""
    height, width = rgb.shape[:2]
    predictor.set_image(rgb)
    points = grid_points(side)[:, None] * [width, height]
    scores, low_res = predictor.predict_low_res(points, np.ones(points.shape[:2]))
    assert predictor.geometry is not None
    inside = predictor.geometry.inside(low_res.shape[-1])
    labels = np.zeros((height, width), np.uint8)
    for prompt, output in islice(sure_objects(scores, low_res, inside), _MASKS):
        mask = predictor.upscale(low_res[prompt, output])
        labels[mask & (labels == 0)] = labels.max() + 1
    return labels


if __name__ == "__main__":
    sys.exit(main())
