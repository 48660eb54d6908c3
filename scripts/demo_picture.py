#!/usr/bin/env python3
"""Draw the README's picture from a bundle: the photo, the cells that merge, and the masks.

    make demo
    python scripts/demo_picture.py demo/vit_t-structsam-r0.50-fp32 --box 172,15,428,328 \
        --box 210,100,368,200 --out docs/demo.jpg

The cells are those of the bundle's own reference photo in one block, the masks those that `predict`
draws for the boxes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from structsam_export import open_bundle
from structsam_export.bundle.atomic import staged_file
from structsam_export.inspect.merge_picture import Tile, draw_groups, draw_tile
from structsam_export.inspect.merged_map import merged_map, resized_photo
from structsam_export.parity.reference import load_reference
from structsam_export.predict.overlay import draw_overlay
from structsam_export.predict.preprocessing import read_photo
from structsam_export.predict.prompts import parse_box

_TOKEN = 8  # pixels of the picture per token


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--box", action="append", default=[], required=True)
    parser.add_argument("--block", type=int, default=8, help="whose plan is drawn")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.jpg"))
    wanted = parser.parse_args()
    bundle = open_bundle(wanted.bundle)
    path = bundle.file(bundle.manifest["reference_images"][0])
    reference = load_reference(read_photo(path, bundle.preprocessing))
    rgb = reference.photo.rgb
    boxes = [parse_box(text) for text in wanted.box]
    with bundle.predictor() as predictor:
        predictor.set_image(rgb)
        geometry = predictor.geometry
        assert geometry is not None
        masks, _, _ = predictor.predict(box=np.array(boxes), multimask_output=False)
    block = bundle.manifest["merging"]["blocks"][wanted.block]
    grid = reference.embedding.shape[-2:]
    found = merged_map(*reference.plans[wanted.block], block["grid"], grid)
    patch = geometry.image_size // grid[0]
    photo = resized_photo(rgb, geometry, _TOKEN / patch)
    size = photo.shape[1], photo.shape[0]
    overlay = draw_overlay(rgb, (mask[0] for mask in masks), boxes=boxes)
    kept = f"{block['slots']:,} of {block['tokens']:,} tokens"
    panels = (
        (Image.fromarray(photo), "the photo"),
        (draw_groups(photo, found, _TOKEN), f"flat cells merge: {kept} are left"),
        (
            overlay.resize(size, Image.Resampling.LANCZOS),
            "masks for two boxes, by the exported graphs",
        ),
    )
    tiles = tuple(draw_tile(Tile((panel,), (caption,))) for panel, caption in panels)
    picture = draw_tile(Tile(tiles, ()))
    with staged_file(wanted.out) as temporary:
        picture.convert("RGB").save(temporary, format="JPEG", quality=88, optimize=True)
    print(wanted.out)


if __name__ == "__main__":
    main()
