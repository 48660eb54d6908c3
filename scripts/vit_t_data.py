"""Batches of images, prompts and segments for `train_vit_t.py`.

numpy and Pillow only. A batch is a pure function of (seed, step, size), whoever makes it: that is
what makes a run repeatable and resumable without saving any generator's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from vit_t_drawn import drawn_image, with_pasted
from vit_t_photographs import VOID, Labels, Photographs, Pixels, large_segments, resized_labels

_USED_SIDE = 1024  # of the encoder's input in use
NOT_SCORED = 255  # in a batch's segments


class Batch(NamedTuple):
    """One step's input. g: the token grid; S = 16 g pixels.

    images uint8 [B, S, S, 3]; sizes: valid rows and columns [B, 2] of each; coords [B, P, 2, 2] in
    0..1; labels [B, P, 2] as the prompt encoder has them; segments uint8 [B, 8g, 8g], 0 = none of
    the prompted ones, `NOT_SCORED` = void; names [B, P]: the segment that each prompt means; whole:
    made without crops.

    Arrays as made here, tensors as a `DataLoader` hands them on.
    """

    images: Any
    sizes: Any
    coords: Any
    labels: Any
    segments: Any
    names: Any
    whole: bool


class Order(NamedTuple):
    """What decides a batch besides the photographs.

    Args:
        drawn: share of drawn images.
        scale: the smallest crop's scale against that of a whole image of 1024 pixels; 1: no crops.
    """

    seed: int
    step: int
    grid: int
    batch: int
    prompts: int
    drawn: float
    scale: float


def make_batch(photographs: Photographs, order: Order) -> Batch:
    """The batch that `order` says."""
    grid, prompts = order.grid, order.prompts
    samples = []
    for item in range(order.batch):
        rng = np.random.default_rng([order.seed, order.step, item])
        while True:
            if rng.random() < order.drawn:
                pixels, labels = drawn_image(rng, photographs, min(16 * grid, 320))
            else:
                pixels, labels = photographs.draw(rng)
                if rng.random() < 0.4:
                    pixels, labels = with_pasted(pixels, labels, photographs, rng)
            image, small, size = _augmented(pixels, labels, 16 * grid, order.scale, rng)
            names = large_segments(small, max(0.0007, 1 / grid**2))
            if len(names):
                break
        chosen = [rng.permutation(names) for _ in range(-(-prompts // len(names)))]
        samples.append(_sample(image, small, size, np.concatenate(chosen)[:prompts], rng))
    return _stacked(samples, order.scale == 1)


def validation_batch(photographs: Photographs, index: int, grid: int, prompts: int) -> Batch | None:
    """Whole image `index` with exact boxes (even prompts) and inner points (odd) per segment."""
    pixels, labels = photographs[index]
    height, width = labels.shape
    image, small, size = _framed(pixels, labels, (0, 0, width, height), 16 * grid)
    names = large_segments(small)
    if not len(names):
        return None
    rng = np.random.default_rng(index)
    names = np.repeat(rng.permutation(names)[:prompts], 2)
    return _stacked([_sample(image, small, size, names, None)], True)


def used_scale(grid: int) -> float:
    """Of crops in which tokens cover what they cover in a whole image of 1024 pixels."""
    return 16 * grid / _USED_SIDE


def _stacked(samples: Sequence[Sequence[np.ndarray]], whole: bool) -> Batch:
    return Batch(*(np.stack(part) for part in zip(*samples, strict=True)), whole)


def _augmented(
    pixels: Pixels, labels: Labels, side: int, scale: float, rng: np.random.Generator
) -> tuple[Pixels, Labels, NDArray[np.int64]]:
    height, width = labels.shape
    if rng.random() < 0.1 + 0.6 * scale:  # whole, padded as in use
        box = (0.0, 0.0, float(width), float(height))
    else:  # from the scale that tokens have in use to all that fits
        part = min(height, width) * np.exp(rng.uniform(np.log(0.9 * scale), 0))
        stretch = np.exp(rng.uniform(-0.2, 0.2))
        box_w, box_h = min(part * stretch, width), min(part / stretch, height)
        x, y = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
        box = (x, y, x + box_w, y + box_h)
    image, small, size = _framed(pixels, labels, box, side, stretch=box[2] - box[0] < width)
    rows, columns = size
    if rng.random() < 0.5:
        image[:rows, :columns] = image[:rows, :columns][:, ::-1].copy()
        part_rows, part_columns = -(-rows // 2), -(-columns // 2)
        small[:part_rows, :part_columns] = small[:part_rows, :part_columns][:, ::-1].copy()
    if rng.random() < 0.15:  # square turns keep the padding at the right and bottom
        image, small = image.transpose(1, 0, 2), small.T
        size = size[::-1]
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    offset = rng.uniform(-20, 20)
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    image = np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)
    if rng.random() < 0.08:
        image[:] = image.mean(-1, keepdims=True).astype(np.uint8)
    return image, small, size


def _framed(
    pixels: Pixels,
    labels: Labels,
    box: tuple[float, float, float, float],
    side: int,
    stretch: bool = False,
) -> tuple[Pixels, Labels, NDArray[np.int64]]:
    """A box of an image, long side `side` (or stretched to the square), and its labels halved."""
    box_w, box_h = box[2] - box[0], box[3] - box[1]
    scale = side / max(box_w, box_h)
    columns, rows = (side, side) if stretch else (round(box_w * scale), round(box_h * scale))
    columns, rows = max(columns, 2), max(rows, 2)
    image = np.zeros((side, side, 3), np.uint8)
    resized = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    image[:rows, :columns] = np.asarray(resized)
    small = np.zeros((side // 2, side // 2), np.uint16)
    half = (-(-columns // 2), -(-rows // 2))
    small[: half[1], : half[0]] = resized_labels(labels, box, half)
    return image, small, np.array([rows, columns])


def _sample(
    image: Pixels,
    small: Labels,
    size: NDArray[np.int64],
    names: NDArray[np.int64],
    rng: np.random.Generator | None,
) -> tuple[np.ndarray, ...]:
    """Prompts of the segments `names`; without rng exact boxes and inner points."""
    side = small.shape[0]
    kept, numbers = np.unique(names, return_inverse=True)
    segments = np.zeros(small.shape, np.uint8)
    for number, name in enumerate(kept, start=1):
        segments[small == name] = number
    numbers = (numbers + 1).astype(np.int64)
    coords = np.zeros((len(names), 2, 2), np.float32)
    labels = np.empty((len(names), 2), np.int64)
    for i, number in enumerate(numbers):
        target = segments == number
        if (i % 2 == 0) if rng is None else (rng.random() < 0.65):
            ys, xs = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
            box = np.array([[xs[0], ys[0]], [xs[-1] + 1, ys[-1] + 1]], np.float64)
            if rng is not None and rng.random() < 0.8:
                room = np.minimum(0.1 * (box[1] - box[0]), 20 * side / 1024)
                box = box + np.clip(rng.normal(0, 0.5, (2, 2)), -1, 1) * room
                box = np.clip(box, 0, size[::-1] / 2)
            coords[i], labels[i] = box / side, (2, 3)
        else:
            coords[i, 0] = (_point_inside(target, rng) + 0.5) / side
            labels[i] = (1, -1)
    segments[small == VOID] = NOT_SCORED
    return image, size, coords, labels, segments, numbers


def _point_inside(target: NDArray[np.bool_], rng: np.random.Generator | None) -> NDArray[np.int64]:
    """x, y of a random pixel, or of one deep inside: where the blurred mask peaks."""
    if rng is not None and rng.random() < 0.6:
        ys, xs = np.nonzero(target)
        pick = int(rng.integers(len(ys)))
        return np.array([xs[pick], ys[pick]])
    deep = target
    radius = max(1, round(0.25 * float(target.sum()) ** 0.5))
    blurred = Image.fromarray(deep.view(np.uint8) * 255).filter(ImageFilter.BoxBlur(radius))
    y, x = np.unravel_index(np.argmax(np.where(target, np.asarray(blurred), -1.0)), target.shape)
    return np.array([x, y])
