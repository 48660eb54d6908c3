"""From a photo and prompts to a network's input, and from low-resolution masks to the photo.

The rules come from a bundle's manifest. SAM's are pixel-exact with `ResizeLongestSide` and
`Sam.preprocess`, and masks equal `Sam.postprocess_masks`, in numpy and Pillow alone.

MedSAM resizes with scikit-image (cubic spline, Gaussian anti-aliasing, truncation to uint8), which
is not needed here: Pillow's bicubic differs from it by 0.5 to 1.5 of 255 grey levels on average
(99 % of the values by less than 12; five photos, 256 to 2250 pixels wide). MedSAM also upsamples
probabilities where SAM upsamples logits, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from structsam.errors import UserError

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BLOCK_ROWS, _BLOCK_COLUMNS = 64, 128  # products so small that BLAS keeps to one thread
_MIN_PROBABILITY = 1e-7
_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageGeometry:
    """Where the photo lies in the encoder's input.

    Args:
        original_size: the photo's (H, W) in pixels.
        input_size: (H, W) that it was resized to, at the top left of the input.
        image_size: side of the square input, 1024 for SAM.
        upsample_probabilities: MedSAM's order (sigmoid, one bilinear step to the photo) instead
            of SAM's (logits, bilinear to the input, crop, bilinear to the photo).
    """

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_size: int
    upsample_probabilities: bool = False

    def to_input(self, xy: np.ndarray) -> np.ndarray:
        """Map (x, y) pairs [..., 2] from photo pixels to input pixels, float32.

        x and y have their own factors because each side is rounded to whole pixels.
        """
        (height, width), (new_height, new_width) = self.original_size, self.input_size
        factors = np.array([new_width / width, new_height / height])
        return np.asarray(np.asarray(xy, np.float64) * factors, np.float32)


def preprocess(rgb: np.ndarray, rules: Mapping[str, Any]) -> tuple[np.ndarray, ImageGeometry]:
    """Turn a uint8 photo [H, W, 3] into the encoder's input, float32 [1, 3, S, S].

    Args:
        rules: `preprocessing` of the manifest.

    Raises:
        UserError: unknown rules, or a photo so elongated that its short side vanishes.
    """
    geometry = image_geometry(rgb.shape[0], rgb.shape[1], rules)
    height, width = geometry.input_size
    resampling = _choose(rules, "interpolation", _RESAMPLING)
    photo = Image.fromarray(np.ascontiguousarray(rgb))
    resized = np.asarray(photo.resize((width, height), resampling)).astype(np.float32)
    if _choose(rules, "scaling", {"mean_std": False, "min_max": True}):
        low, high = resized.min(), resized.max()
        resized = (resized - low) / max(high - low, np.float32(1e-8))
    else:
        resized = (resized - np.float32(rules["mean"])) / np.float32(rules["std"])
    image = np.zeros((1, 3, geometry.image_size, geometry.image_size), np.float32)
    image[0, :, :height, :width] = resized.transpose(2, 0, 1)
    return image, geometry


def image_geometry(height: int, width: int, rules: Mapping[str, Any]) -> ImageGeometry:
    """Say where a photo of that size lies in the encoder's input; see `preprocess`."""
    side = int(rules["image_size"])
    stretch = _choose(rules, "resize", {"long_side": False, "stretch": True})
    if stretch:
        return ImageGeometry((height, width), (side, side), side, upsample_probabilities=True)
    if not rules["pad"]:
        raise UserError(
            "the manifest asks for resize 'long_side' without padding, which cannot fill the "
            "square input. Export the bundle again"
        )
    scale = side * 1.0 / max(height, width)
    input_size = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(input_size) < 1:
        raise UserError(
            f"the image is {width} x {height} pixels: with its long side at {side}, nothing is "
            "left of the short side. Crop it to the part of interest"
        )
    return ImageGeometry((height, width), input_size, side)


def check_image(image: Any) -> None:
    """Raise a `UserError` unless `image` is a uint8 array [H, W, 3]."""
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"the image is a {type(image).__name__}, and should be a uint8 array [H, W, 3]. "
            "Use np.asarray(image.convert('RGB')), or read_image of "
            "structsam_export.predict.image_file"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"the image has shape {image.shape}, and should have [H, W, 3]. "
            "Repeat a grey image three times; drop an alpha channel with image[..., :3]"
        )
    if image.dtype != np.uint8:
        raise UserError(
            f"the image is {image.dtype}, and should be uint8 in 0..255. "
            "For values in 0..1 use (image * 255).round().astype(np.uint8)"
        )


def check_points(
    coords: Any, labels: Any, geometry: ImageGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Return points [N, 2] or [P, K, 2] and their labels as float64, or raise a `UserError`."""
    points = check_numbers("point_coords", coords)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape:
        raise UserError(
            f"point_coords has shape {points.shape}, and should have [N, 2], or [P, K, 2] for P "
            "prompts. Write one point as [[x, y]]"
        )
    marks = check_numbers("point_labels", labels, points.shape[:-1])
    if not np.isin(marks, (0, 1)).all():
        raise UserError(
            f"point_labels holds {np.unique(marks).tolist()}, and should hold only 1 (foreground) "
            "and 0 (background). Pass a box as `box`"
        )
    height, width = geometry.original_size
    outside = (points < 0).any(-1) | (points[..., 0] >= width) | (points[..., 1] >= height)
    if outside.any():
        x, y = points[outside][0]
        raise UserError(
            f"point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels: "
            f"expected 0 <= x < {width} and 0 <= y < {height}. Give (x, y) in its pixels"
        )
    return points, marks


def check_boxes(box: Any, geometry: ImageGeometry) -> np.ndarray:
    """Return one box [4] or many [P, 4] as float64 [P, 4], or raise a `UserError`."""
    boxes = check_numbers("box", box)
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or 0 in boxes.shape:
        raise UserError(
            f"box has shape {boxes.shape}, and should have [4], or [P, 4] for P prompts. "
            "Write a box as [x0, y0, x1, y1]"
        )
    boxes = boxes.reshape(-1, 4)
    height, width = geometry.original_size
    for x0, y0, x1, y1 in boxes:
        text = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
        if x1 <= x0 or y1 <= y0:
            raise UserError(
                f"{text} is empty or inverted: expected x0 < x1 and y0 < y1. Give the top left "
                "corner, then the bottom right one, not width and height"
            )
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UserError(
                f"{text} is outside the image of {width} x {height} pixels: expected x in "
                f"0..{width} and y in 0..{height}. Clip it to the image"
            )
    return boxes


def check_numbers(name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return `value` as float64, or raise a `UserError`: not finite numbers of that shape."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError(f"{name} is ragged. Give rows of the same length") from None
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{name} holds {array.dtype}, and should hold numbers. Pass a numeric array"
        )
    if shape is not None and array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}, and should have {shape}. Reshape it")
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds NaN or infinity. Pass finite numbers")
    return array.astype(np.float64)


def upscale_masks(low_res: np.ndarray, geometry: ImageGeometry) -> np.ndarray:
    """Bring mask logits float32 [..., h, w] to the photo: logits, float32 [..., H, W]."""
    masks = np.empty((*low_res.shape[:-2], *geometry.original_size), np.float32)
    planes = masks.reshape(-1, *geometry.original_size)
    for plane, source in zip(planes, _planes(low_res, geometry), strict=True):
        for top, block in _row_blocks(source, geometry):
            if geometry.upsample_probabilities:
                np.clip(block, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY, out=block)
                block = np.log(block / (1 - block))
            plane[top : top + len(block)] = block
    return masks


def binary_masks(low_res: np.ndarray, geometry: ImageGeometry) -> np.ndarray:
    """Equal `upscale_masks(low_res, geometry) > 0`, bool [..., H, W], without its float memory."""
    masks = np.empty((*low_res.shape[:-2], *geometry.original_size), bool)
    planes = masks.reshape(-1, *geometry.original_size)
    threshold = 0.5 if geometry.upsample_probabilities else 0.0
    for plane, source in zip(planes, _planes(low_res, geometry), strict=True):
        for top, block in _row_blocks(source, geometry):
            np.greater(block, threshold, out=plane[top : top + len(block)])
    return masks


def _planes(low_res: np.ndarray, geometry: ImageGeometry) -> np.ndarray:
    planes = np.asarray(low_res, np.float32).reshape(-1, *low_res.shape[-2:])
    if geometry.upsample_probabilities:
        return np.asarray(0.5 * np.tanh(0.5 * planes) + 0.5, np.float32)  # sigmoid, no overflow
    return planes


class _Band(NamedTuple):
    """Output rows start..stop are `weights` [stop - start, high - low] times input low..high."""

    start: int
    stop: int
    low: int
    high: int
    weights: np.ndarray


def _row_blocks(plane: np.ndarray, geometry: ImageGeometry) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, float32 [rows, W]) from top to bottom; the buffer is reused.

    Bilinear resizing is linear and separable, so both of SAM's steps are one matrix per axis:
    Ry @ plane @ Rx^T. Each row of Ry has at most four weights side by side, so a block of output
    needs only a narrow band of the input, and the matrix products stay small.
    """
    rows, columns = (
        _bands(plane.shape[axis], geometry, axis, block)
        for axis, block in enumerate((_BLOCK_ROWS, _BLOCK_COLUMNS))
    )
    buffer = np.empty((_BLOCK_ROWS, geometry.original_size[1]), np.float32)
    for row in rows:
        block = buffer[: row.stop - row.start]
        tall = row.weights @ plane[row.low : row.high]
        for column in columns:
            narrow = tall[:, column.low : column.high]
            np.matmul(narrow, column.weights.T, out=block[:, column.start : column.stop])
        yield row.start, block


@lru_cache(maxsize=16)
def _bands(size: int, geometry: ImageGeometry, axis: int, block: int) -> tuple[_Band, ...]:
    """Cut the matrix [original_size, size] of one axis into blocks of output rows."""
    original = geometry.original_size[axis]
    if geometry.upsample_probabilities:
        taps = _bilinear_taps(size, original)
    else:
        inner = _bilinear_taps(size, geometry.image_size)
        outer = _bilinear_taps(geometry.input_size[axis], original)
        taps = [
            (index_in[index], weight * weight_in[index])
            for index, weight in outer
            for index_in, weight_in in inner
        ]
    bands = []
    for start in range(0, original, block):
        stop = min(start + block, original)
        low = min(int(index[start:stop].min()) for index, _ in taps)
        high = max(int(index[start:stop].max()) for index, _ in taps) + 1
        weights = np.zeros((stop - start, high - low), np.float32)
        for index, weight in taps:
            weights[np.arange(stop - start), index[start:stop] - low] += weight[start:stop]
        bands.append(_Band(start, stop, low, high, weights))
    return tuple(bands)


def _bilinear_taps(size: int, new_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return two (index, weight) pairs, [new_size] each: `interpolate(align_corners=False)`.

    In float32 throughout, because torch computes the positions so.
    """
    scale = np.float32(size) / np.float32(new_size)
    half = np.float32(0.5)
    position = np.maximum(scale * (np.arange(new_size, dtype=np.float32) + half) - half, 0)
    index = np.minimum(position.astype(np.int64), size - 1)
    weight = np.clip(position - index.astype(np.float32), 0, 1)
    return [(index, 1 - weight), (np.minimum(index + 1, size - 1), weight)]


def _choose(rules: Mapping[str, Any], key: str, options: Mapping[str, _T]) -> _T:
    found = str(rules.get(key))
    if found not in options:
        raise UserError(
            f"preprocessing.{key} is {found!r} in the manifest, and this structsam knows "
            f"{', '.join(options)}. Update structsam, or export the bundle again"
        )
    return options[found]
