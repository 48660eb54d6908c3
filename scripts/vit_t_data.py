"""Training samples for `train_vit_t.py`: photographs with label maps, and images drawn on the fly.

numpy and Pillow only. A batch is a pure function of (seed, step, size), whoever makes it: that is
what makes a run repeatable and resumable without saving any generator's state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from structsam.errors import UserError

Pixels = NDArray[np.uint8]  # [H, W, 3]
Labels = NDArray[np.uint16]  # [H, W], 0 = no object
Floats = NDArray[np.float32]

VOID = 65535
_SIDE = 512  # longer side of a cached photograph
_USED_SIDE = 1024  # of the encoder's input in use
_HELD_OUT = 33  # every 33rd image of a set validates
_SMALLEST = 0.001  # share of the image that a segment needs to be prompted
_CLASS_WEIGHT = {  # how often a set is drawn, relative to the square root of its size
    "cracks": 0.4, "nuclei": 0.5, "facade": 0.7, "ccp": 0.7, "camvid": 0.8, "pets": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """One step's input. g: the token grid; S = 16 g pixels, labels and targets at 8 g.

    images uint8 [B, S, S, 3]; padded: valid rows and columns [B, 2] of each; coords [B, P, 2, 2]
    in 0..1; labels [B, P, 2] as the prompt encoder has them; targets bool [B, P, 8g, 8g];
    valid bool [B, 8g, 8g].
    """

    images: Pixels
    sizes: NDArray[np.int64]
    coords: Floats
    labels: NDArray[np.int64]
    targets: NDArray[np.bool_]
    valid: NDArray[np.bool_]


class Photographs:
    """The sets under one folder, decoded once into a cache file that is mapped, not read."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.entries = _find(root)
        key = json.dumps([[str(p.relative_to(root)), p.stat().st_size] for p, _ in self.entries])
        index_file, pixel_file = cache / "photographs.json", cache / "photographs.bin"
        index = json.loads(index_file.read_text()) if index_file.exists() else {}
        if index.get("key") != key or not pixel_file.exists():
            index = _fill_cache(self.entries, key, index_file, pixel_file)
        self.shapes: list[list[int]] = index["shapes"]  # offset, height, width
        self.data = np.memmap(pixel_file, np.uint8, "r")
        names = sorted({name for _, name in self.entries})
        self.training: list[NDArray[np.int64]] = []
        self.validation: list[int] = []
        weights = []
        for name in names:
            members = [i for i, (_, other) in enumerate(self.entries) if other == name]
            held = members[_HELD_OUT // 2 :: _HELD_OUT] if len(members) > 1 else []
            self.validation += held
            self.training.append(np.array([i for i in members if i not in set(held)]))
            weights.append(len(members) ** 0.5 * _CLASS_WEIGHT.get(name, 1.0))
        self.weights = np.array(weights) / sum(weights)

    def __getitem__(self, index: int) -> tuple[Pixels, Labels]:
        offset, height, width = self.shapes[index]
        middle = offset + height * width * 3
        pixels = self.data[offset:middle].reshape(height, width, 3)
        end = middle + height * width * 2
        return pixels, self.data[middle:end].view(np.uint16).reshape(height, width)

    def draw(self, rng: np.random.Generator) -> tuple[Pixels, Labels]:
        """A training photograph: a set first, then one of its images."""
        members = self.training[rng.choice(len(self.training), p=self.weights)]
        return self[int(rng.choice(members))]


def _find(root: Path) -> list[tuple[Path, str]]:
    if not root.is_dir():
        raise UserError(
            f"No training data at {root}: pass --data FOLDER with NAME/images/STEM.jpg and "
            "NAME/masks/STEM.png (labels, 0 = background)."
        )
    found = []
    for image in sorted(root.glob("*/images/*")):
        mask = image.parent.parent / "masks" / f"{image.stem}.png"
        if not mask.is_file():
            raise UserError(f"{image} has no label map {mask}: the folder is incomplete.")
        found.append((image, image.parent.parent.name))
    if not found:
        raise UserError(
            f"{root} holds no NAME/images/*: expected sets with images/STEM.jpg and "
            "masks/STEM.png (labels, 0 = background)."
        )
    return found


def _fill_cache(
    entries: Sequence[tuple[Path, str]], key: str, index_file: Path, pixel_file: Path
) -> dict[str, object]:
    pixel_file.parent.mkdir(parents=True, exist_ok=True)
    shapes, offset = [], 0
    temporary = pixel_file.with_suffix(".tmp")
    with temporary.open("wb") as out:
        for image_path, _ in entries:
            pixels, labels = _decode(image_path)
            shapes.append([offset, *labels.shape])
            offset += out.write(np.ascontiguousarray(pixels).data)
            offset += out.write(np.ascontiguousarray(labels).data)
            offset += out.write(b"\0" * (-offset % 8))
    temporary.replace(pixel_file)
    index: dict[str, object] = {"key": key, "shapes": shapes}
    temporary = index_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(index))
    temporary.replace(index_file)
    return index


def _decode(image_path: Path) -> tuple[Pixels, Labels]:
    folder, name = image_path.parent.parent, f"{image_path.stem}.png"
    try:
        with Image.open(image_path) as image, Image.open(folder / "masks" / name) as mask:
            photo, labels = image.convert("RGB"), np.asarray(mask).astype(np.uint16)
        if (void_file := folder / "void" / name).is_file():
            with Image.open(void_file) as void:
                labels[np.asarray(void) > 0] = VOID
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"Cannot read {image_path} or its label map ({error}): replace the damaged file, or "
            "remove both."
        ) from error
    if labels.shape != photo.size[::-1]:
        raise UserError(
            f"{image_path} is {photo.size[0]}x{photo.size[1]}, its label map "
            f"{labels.shape[-1]}x{labels.shape[0]}: expected equal sizes."
        )
    scale = _SIDE / max(photo.size)
    if scale < 1:
        size = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(size, Image.Resampling.BILINEAR)
        labels = _resized_labels(labels, (0, 0, labels.shape[1], labels.shape[0]), size)
    return np.asarray(photo), labels


# ------------------------------------------------------------------------------- drawn images


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


def _with_pasted(
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
            names = _large_segments(segments)
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


def _large_segments(labels: Labels, share: float = _SMALLEST) -> NDArray[np.int64]:
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    if len(counts) > VOID:
        counts[VOID] = 0
    return np.flatnonzero(counts >= max(share * labels.size, 4))


# ------------------------------------------------------------------------------------ batches


def make_batch(
    photographs: Photographs,
    seed: int,
    step: int,
    grid: int,
    batch: int,
    prompts: int,
    drawn: float,
) -> Batch:
    """The batch of `step`; `drawn` is the share of drawn images."""
    samples = []
    for item in range(batch):
        rng = np.random.default_rng([seed, step, item])
        while True:
            if rng.random() < drawn:
                pixels, labels = drawn_image(rng, photographs, min(16 * grid, 320))
            else:
                pixels, labels = photographs.draw(rng)
                if rng.random() < 0.4:
                    pixels, labels = _with_pasted(pixels, labels, photographs, rng)
            image, small, size = _augmented(pixels, labels, 16 * grid, rng)
            names = _large_segments(small, max(0.0007, 1 / grid**2))
            if len(names):
                break
        chosen = [rng.permutation(names) for _ in range(-(-prompts // len(names)))]
        samples.append(_sample(image, small, size, np.concatenate(chosen)[:prompts], grid, rng))
    return _stacked(samples)


def validation_batch(photographs: Photographs, index: int, grid: int, prompts: int) -> Batch | None:
    """Whole image `index` with exact boxes (even prompts) and inner points (odd) per segment."""
    pixels, labels = photographs[index]
    height, width = labels.shape
    image, small, size = _framed(pixels, labels, (0, 0, width, height), 16 * grid)
    names = _large_segments(small)
    if not len(names):
        return None
    rng = np.random.default_rng(index)
    names = np.repeat(rng.permutation(names)[:prompts], 2)
    return _stacked([_sample(image, small, size, names, grid, None)])


def _stacked(samples: Sequence[Sequence[np.ndarray]]) -> Batch:
    return Batch(*(np.stack(part) for part in zip(*samples, strict=True)))


def _augmented(
    pixels: Pixels, labels: Labels, side: int, rng: np.random.Generator
) -> tuple[Pixels, Labels, NDArray[np.int64]]:
    height, width = labels.shape
    share = side / _USED_SIDE
    if rng.random() < 0.1 + 0.6 * share:  # whole, padded as in use
        box = (0.0, 0.0, float(width), float(height))
    else:  # from the scale that tokens have in use to all that fits
        part = min(height, width) * np.exp(rng.uniform(np.log(0.9 * share), 0))
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
    small[: half[1], : half[0]] = _resized_labels(labels, box, half)
    return image, small, np.array([rows, columns])


def _resized_labels(
    labels: Labels, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Labels:
    """Nearest neighbours at pixel centres; `box` is (x0, y0, x1, y1), size (width, height)."""
    xs = box[0] + (np.arange(size[0]) + 0.5) * (box[2] - box[0]) / size[0]
    ys = box[1] + (np.arange(size[1]) + 0.5) * (box[3] - box[1]) / size[1]
    xs = np.minimum(xs.astype(np.int64), labels.shape[1] - 1)
    ys = np.minimum(ys.astype(np.int64), labels.shape[0] - 1)
    return labels[ys[:, None], xs]


def _sample(
    image: Pixels,
    small: Labels,
    size: NDArray[np.int64],
    names: NDArray[np.int64],
    grid: int,
    rng: np.random.Generator | None,
) -> tuple[np.ndarray, ...]:
    """Prompts and targets of the segments `names`; without rng exact boxes and inner points."""
    side = small.shape[0]
    targets = small[None] == names[:, None, None]
    coords = np.zeros((len(names), 2, 2), np.float32)
    labels = np.empty((len(names), 2), np.int64)
    for i, target in enumerate(targets):
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
    return image, size, coords, labels, targets, small != VOID


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
