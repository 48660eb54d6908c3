"""From a photo to a network's input.

SAM's preprocessing is pixel-exact with `ResizeLongestSide` and `Sam.preprocess`, in numpy and
Pillow alone.

MedSAM resizes with scikit-image (cubic spline, Gaussian anti-aliasing, truncation to uint8), which
is not needed here: Pillow's bicubic differs from it by 0.5 to 1.5 of 255 grey levels on average
(99 % of the values by less than 12; five photos, 256 to 2250 pixels wide). MedSAM also upsamples
probabilities where SAM upsamples logits, and so do we.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structsam.errors import UserError
from structsam.models import Preprocessing
from structsam_export.predict.image_file import Note, read_image

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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

    def inside(self, side: int) -> tuple[int, int]:
        """Return how many rows and columns of a map side x side lie on the photo, 1 at least."""
        rows, columns = (max(1, round(edge * side / self.image_size)) for edge in self.input_size)
        return rows, columns


@dataclass(frozen=True)
class Photo:
    """A photo that was read and preprocessed once.

    Args:
        path: its file.
        rgb: uint8 [H, W, 3].
        pixels: the encoder's input, float32 [1, 3, S, S].
        geometry: where the photo lies in that input.
    """

    path: Path
    rgb: np.ndarray
    pixels: np.ndarray
    geometry: ImageGeometry


def read_photo(path: Path, how: Preprocessing, note: Note | None = None) -> Photo:
    """Read and preprocess an image file; see `read_image` and `preprocess`."""
    rgb = read_image(path, note)
    return Photo(path, rgb, *preprocess(rgb, how))


def preprocess(rgb: np.ndarray, how: Preprocessing) -> tuple[np.ndarray, ImageGeometry]:
    """Turn a uint8 photo [H, W, 3] into the encoder's input, float32 [1, 3, S, S].

    Raises:
        UserError: a photo so elongated that its short side vanishes.
    """
    geometry = image_geometry(rgb.shape[0], rgb.shape[1], how)
    height, width = geometry.input_size
    photo = Image.fromarray(np.ascontiguousarray(rgb))
    resized = photo.resize((width, height), _RESAMPLING[how.interpolation])
    pixels: np.ndarray = np.asarray(resized).astype(np.float32)
    if how.scaling == "min_max":
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / max(high - low, np.float32(1e-8))
    else:
        pixels = (pixels - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    image = np.zeros((1, 3, geometry.image_size, geometry.image_size), np.float32)
    image[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    return image, geometry


def image_geometry(height: int, width: int, how: Preprocessing) -> ImageGeometry:
    """Say where a photo of that size lies in the encoder's input; see `preprocess`."""
    side = how.image_size
    if how.resize == "stretch":
        return ImageGeometry((height, width), (side, side), side, upsample_probabilities=True)
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
