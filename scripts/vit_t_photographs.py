"""Photographs with label maps that `train_vit_t.py` draws from. numpy and Pillow only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structsam.errors import UserError

Pixels = NDArray[np.uint8]  # [H, W, 3]
Labels = NDArray[np.uint16]  # [H, W], 0 = no object

VOID = 65535
_SIDE = 512  # longer side of a cached photograph
_HELD_OUT = 33  # every 33rd image of a set validates
_SMALLEST = 0.001  # share of the image that a segment needs to be prompted
_CLASS_WEIGHT = {  # how often a set is drawn, relative to the square root of its size
    "cracks": 0.4, "nuclei": 0.5, "facade": 0.7, "ccp": 0.7, "camvid": 0.8, "pets": 0.5,
}  # fmt: skip


class Photographs:
    """The sets under one folder, decoded once into a cache file that is mapped, not read."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.entries = _find(root)
        files = [file for image, _ in self.entries for file in _files_of(image) if file.is_file()]
        stats = [(str(file.relative_to(root)), file.stat()) for file in files]
        key = json.dumps([_SIDE, *((name, s.st_size, s.st_mtime_ns) for name, s in stats)])
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
            first = min(_HELD_OUT, len(members)) // 2
            held = members[first::_HELD_OUT] if len(members) > 1 else []
            self.validation += held
            self.training.append(np.array([i for i in members if i not in set(held)]))
            weights.append(len(members) ** 0.5 * _CLASS_WEIGHT.get(name, 1.0))
        if not self.validation:
            raise UserError(
                f"{root} holds sets of one image only, so that none is left to validate with: "
                "add images."
            )
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


def _files_of(image: Path) -> tuple[Path, Path, Path]:
    """An image, its label map, and where it may have a map of what is void."""
    folder, name = image.parent.parent, f"{image.stem}.png"
    return image, folder / "masks" / name, folder / "void" / name


def _find(root: Path) -> list[tuple[Path, str]]:
    if not root.is_dir():
        raise UserError(
            f"No training data at {root}: pass --data FOLDER with NAME/images/STEM.jpg and "
            "NAME/masks/STEM.png (labels, 0 = background)."
        )
    found = []
    for image in sorted(root.glob("*/images/*")):
        mask = _files_of(image)[1]
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
    _, mask_file, void_file = _files_of(image_path)
    try:
        with Image.open(image_path) as image, Image.open(mask_file) as mask:
            photo, labels = image.convert("RGB"), np.asarray(mask).astype(np.uint16)
        if void_file.is_file():
            with Image.open(void_file) as void:
                labels[np.asarray(void) > 0] = VOID
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"Cannot read {image_path} or its label map ({error}): replace the damaged file, or "
            "remove both."
        ) from error
    if labels.ndim != 2:
        raise UserError(
            f"{mask_file} is coloured: save labels as a grey or palette image, 0 = background."
        )
    if labels.shape != photo.size[::-1]:
        raise UserError(
            f"{image_path} is {photo.size[0]}x{photo.size[1]}, its label map "
            f"{labels.shape[-1]}x{labels.shape[0]}: expected equal sizes."
        )
    scale = _SIDE / max(photo.size)
    if scale < 1:
        size = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(size, Image.Resampling.BILINEAR)
        labels = resized_labels(labels, (0, 0, labels.shape[1], labels.shape[0]), size)
    return np.asarray(photo), labels


def resized_labels(
    labels: Labels, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Labels:
    """Nearest neighbours at pixel centres; `box` is (x0, y0, x1, y1), size (width, height)."""
    xs = box[0] + (np.arange(size[0]) + 0.5) * (box[2] - box[0]) / size[0]
    ys = box[1] + (np.arange(size[1]) + 0.5) * (box[3] - box[1]) / size[1]
    xs = np.minimum(xs.astype(np.int64), labels.shape[1] - 1)
    ys = np.minimum(ys.astype(np.int64), labels.shape[0] - 1)
    return labels[ys[:, None], xs]


def large_segments(labels: Labels, share: float = _SMALLEST) -> NDArray[np.int64]:
    """Names of the segments that take at least this share of the image."""
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    if len(counts) > VOID:
        counts[VOID] = 0
    return np.flatnonzero(counts >= max(share * labels.size, 4))
