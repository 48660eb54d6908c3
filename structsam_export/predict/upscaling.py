"""From low-resolution mask logits to masks in the size of the photo, as `Sam.postprocess_masks`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from structsam_export.predict.preprocessing import ImageGeometry

_BLOCK_ROWS, _BLOCK_COLUMNS = 64, 128  # products so small that BLAS keeps to one thread
_MIN_PROBABILITY = 1e-7
_ROUNDING = 1e-3  # more than a mean of logits is off by in float32


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


def mask_and_areas(
    low_res: np.ndarray, geometry: ImageGeometry, offset: float
) -> tuple[np.ndarray, int, int]:
    """Return a mask bool [H, W], and its pixels when it is cut `offset` higher and lower.

    Equal to comparing `upscale_masks(low_res, geometry)` with 0, `offset` and `-offset`, for the
    work of the part of the photo where something exceeds the lowest of them: the other values
    are means of what lies below.

    Args:
        low_res: logits [h, w] of one mask.
    """
    mask = np.zeros(geometry.original_size, bool)
    (plane,) = _planes(low_res[None], geometry)
    cuts = np.array([0.0, offset, -offset])
    if geometry.upsample_probabilities:
        cuts = 0.5 * np.tanh(0.5 * cuts) + 0.5
    middle, high, low = (float(cut) for cut in cuts)
    floor = low - _ROUNDING
    high_pixels = low_pixels = 0
    rows, columns = _both_bands(plane, geometry)
    for row in rows:
        strip = plane[row.low : row.high]
        peaks = strip.max(axis=0)
        if peaks.max() < floor:
            continue
        tall = row.weights @ strip
        for column in columns:
            if peaks[column.low : column.high].max() < floor:
                continue
            block = tall[:, column.low : column.high] @ column.weights.T
            np.greater(block, middle, out=mask[row.start : row.stop, column.start : column.stop])
            high_pixels += np.count_nonzero(block > high)
            low_pixels += np.count_nonzero(block > low)
    return mask, high_pixels, low_pixels


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
    rows, columns = _both_bands(plane, geometry)
    buffer = np.empty((_BLOCK_ROWS, geometry.original_size[1]), np.float32)
    for row in rows:
        block = buffer[: row.stop - row.start]
        tall = row.weights @ plane[row.low : row.high]
        for column in columns:
            narrow = tall[:, column.low : column.high]
            np.matmul(narrow, column.weights.T, out=block[:, column.start : column.stop])
        yield row.start, block


def _both_bands(
    plane: np.ndarray, geometry: ImageGeometry
) -> tuple[tuple[_Band, ...], tuple[_Band, ...]]:
    """Return the bands of rows and of columns for a plane [h, w]."""
    return (
        _bands(plane.shape[0], geometry, 0, _BLOCK_ROWS),
        _bands(plane.shape[1], geometry, 1, _BLOCK_COLUMNS),
    )


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
