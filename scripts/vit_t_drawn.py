"""Images drawn on the fly, and segments pasted onto others, for `train_vit_t.py`."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from vit_t_photographs import VOID, Labels, Photographs, Pixels, large_segments


def drawn_image(
    rng: np.random.Generator, photographs: Photographs, side: int = 320
) -> tuple[Pixels, Labels]:
    """Textured polygons, ellipses and thin lines over one another on a textured background."""
    pixels = _texture(rng, photographs, side)
    labels = np.zeros((side, side), np.uint16)
    for label in range(1, int(rng.integers(4, 13))):
        _paint(pixels, labels, _shape(rng, side), _texture(rng, photographs, side), label, rng)
    if rng.random() < 0.5:
        blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
        pixels = np.array(blurred)
    return pixels, labels


def _shape(rng: np.random.Generator, side: int) -> Pixels:
    """Coverage 0..255 [side, side] of a random shape with soft edges."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    kind = rng.random()
    cx, cy = rng.uniform(0, side, 2)
    radius = side * np.exp(rng.uniform(np.log(0.05), np.log(0.45)))
    if kind < 0.2:  # thin and curved
        angle, points = rng.uniform(0, 2 * np.pi), [(cx, cy)]
        for _ in range(int(rng.integers(3, 9))):
            angle += rng.normal(0, 0.5)
            step = rng.uniform(0.05, 0.2) * side
            points.append(
                (points[-1][0] + step * np.cos(angle), points[-1][1] + step * np.sin(angle))
            )
        draw.line(points, fill=255, width=int(rng.integers(3, 14)), joint="curve")
    else:
        corners = int(rng.integers(3, 9)) if kind < 0.55 else 40
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        if kind >= 0.55:  # ellipse, or a blob: an ellipse with a wobbling radius
            angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
            wobble = np.zeros(corners)
            if kind >= 0.75:
                for wave in range(2, 6):
                    wobble += rng.normal(0, 0.12) * np.cos(wave * angles + rng.uniform(0, 6.3))
            radii = radius * (1 + wobble)
        else:
            radii = radius * rng.uniform(0.5, 1.0, corners)
        turn, flat = rng.uniform(0, np.pi), rng.uniform(0.3, 1.0)
        x, y = radii * np.cos(angles), radii * np.sin(angles) * flat
        xs = cx + x * np.cos(turn) - y * np.sin(turn)
        ys = cy + x * np.sin(turn) + y * np.cos(turn)
        draw.polygon([(float(a), float(b)) for a, b in zip(xs, ys, strict=True)], fill=255)
        if rng.random() < 0.15:  # a hole
            hole = radius * rng.uniform(0.2, 0.5) * flat
            draw.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
    return np.asarray(canvas.filter(ImageFilter.BoxBlur(1)))


def _texture(rng: np.random.Generator, photographs: Photographs, side: int) -> Pixels:
    """A piece of a photograph, or noise of a few scales with a gradient around a colour."""
    kind = rng.random()
    if kind < 0.4:
        photo, _ = photographs.draw(rng)
        height, width = photo.shape[:2]
        part = rng.uniform(0.15, 0.6) * min(height, width)
        x, y = rng.uniform(0, width - part), rng.uniform(0, height - part)
        image = Image.fromarray(photo)
        box = (x, y, x + part, y + part)
        return np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    out = np.empty((side, side, 3), np.float32)
    out[:] = rng.uniform(20, 235, 3)
    if kind < 0.9:
        for cells in (2, int(rng.integers(4, 12)), int(rng.integers(20, 100))):
            noise = rng.normal(0, rng.uniform(0, 22), (cells, cells, 1))
            noise = noise + rng.normal(0, rng.uniform(0, 12), (cells, cells, 3))
            small = np.clip(noise + 128, 0, 255).astype(np.uint8)
            large = Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)
            out += np.asarray(large, np.float32) - 128
    return np.clip(out, 0, 255).astype(np.uint8)


def _paint(
    pixels: Pixels,
    labels: Labels,
    cover: Pixels,
    paint: Pixels,
    label: int,
    rng: np.random.Generator,
) -> None:
    """Lay `paint` over `pixels` where `cover` says, in place, with a random shade across it."""
    ys, xs = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    if not len(ys):
        return
    part = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    alpha = cover[part].astype(np.float32)[..., None] / 255
    shade = np.linspace(rng.uniform(0.75, 1.2), rng.uniform(0.75, 1.2), alpha.shape[1])[
        None, :, None
    ]
    laid = paint[part].astype(np.float32) * shade.astype(np.float32)
    pixels[part] = np.clip(pixels[part] * (1 - alpha) + laid * alpha, 0, 255).astype(np.uint8)
    labels[part][cover[part] >= 128] = label


def with_pasted(
    pixels: Pixels, labels: Labels, photographs: Photographs, rng: np.random.Generator
) -> tuple[Pixels, Labels]:
    """One to three segments of other photographs, or drawn shapes, laid over a photograph."""
    pixels, labels = pixels.copy(), labels.copy()
    height, width = labels.shape
    used = int(np.where(labels == VOID, 0, labels).max(initial=0))
    for label in range(used + 1, used + 1 + int(rng.integers(1, 4))):
        side = int(min(height, width) * rng.uniform(0.2, 0.7))
        top = int(rng.integers(-side // 3, height - 2 * side // 3))
        left = int(rng.integers(-side // 3, width - 2 * side // 3))
        if rng.random() < 0.3:
            cover, paint = _shape(rng, side), _texture(rng, photographs, side)
        else:
            other, segments = photographs.draw(rng)
            names = large_segments(segments)
            if not len(names):
                continue
            mask = segments == rng.choice(names)
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
            shrink = side / max(box[2] - box[0], box[3] - box[1])
            size = (
                max(1, round((box[2] - box[0]) * shrink)),
                max(1, round((box[3] - box[1]) * shrink)),
            )
            bilinear = Image.Resampling.BILINEAR
            cover = np.asarray(
                Image.fromarray(mask.view(np.uint8) * 255).resize(size, bilinear, box=box)
            )
            paint = np.asarray(Image.fromarray(other).resize(size, bilinear, box=box))
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + cover.shape[0], height), min(left + cover.shape[1], width)
        if y1 <= y0 or x1 <= x0:
            continue
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        region = np.s_[y0:y1, x0:x1]
        _paint(pixels[region], labels[region], cover[part], paint[part], label, rng)
    return pixels, labels
