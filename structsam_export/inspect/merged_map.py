"""What a merging block did to one image, as maps over its token grid; and what it did to edges.

Letters: H' W' token grid of the image, W windows of N tokens each (one of all tokens where a block
attends over the whole grid), M slots of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from structsam_export.predict.preprocessing import ImageGeometry

#: Share of a photo's tokens that count as its edges: those of strongest gradient.
EDGE_SHARE = 0.2


@dataclass(frozen=True)
class MergedMap:
    """One block's plan for one image, its windows put together and their padding cut away.

    Args:
        group: int64 [H', W'], the same number for tokens that share a slot; numbers of different
            windows differ.
        size: int64 [H', W'], how many tokens share the token's slot; 1 where it is kept as it is.
        anchor: bool [H', W'], true for the token that stands for its slot.
        window: (h, w) of a window in tokens; (H', W') when there is only one.
        tokens: W * N, padding included.
        kept: W * M, padding included.
        energy: float32 [H', W'] of the method, None when it has none.
        energy_name: what that is, in words; empty when there is none.
    """

    group: np.ndarray
    size: np.ndarray
    anchor: np.ndarray
    window: tuple[int, int]
    tokens: int
    kept: int
    energy: np.ndarray | None = None
    energy_name: str = ""

    @property
    def merged(self) -> np.ndarray:
        """Which tokens share a slot with others, bool [H', W']."""
        return self.size > 1

    @property
    def real_kept(self) -> int:
        """Slots of real tokens; they share none with padding."""
        return len(np.unique(self.group))

    @property
    def windows(self) -> int:
        """W."""
        (height, width), (h, w) = self.group.shape, self.window
        return -(-height // h) * -(-width // w)


def merged_map(
    slot_of_token: np.ndarray,
    anchor_of_slot: np.ndarray,
    window: Sequence[int],
    grid: Sequence[int],
    energy: np.ndarray | None = None,
    energy_name: str = "",
) -> MergedMap:
    """Put a plan's windows together.

    Args:
        slot_of_token: [W, N] of one image, windows in row-major order.
        anchor_of_slot: [W, M].
        window: (h, w), N = h * w.
        grid: (H', W').
        energy: [H', W'].
        energy_name: what that is, in words.
    """
    windows, tokens = slot_of_token.shape
    slots = anchor_of_slot.shape[1]
    group = slot_of_token + slots * np.arange(windows)[:, None]
    size = np.bincount(group.ravel(), minlength=windows * slots)[group]
    anchor = np.zeros((windows, tokens), bool)
    np.put_along_axis(anchor, anchor_of_slot, True, axis=1)
    return MergedMap(
        group=whole_map(group, window, grid),
        size=whole_map(size, window, grid),
        anchor=whole_map(anchor, window, grid),
        window=(window[0], window[1]),
        tokens=windows * tokens,
        kept=windows * slots,
        energy=energy,
        energy_name=energy_name,
    )


def whole_map(values: np.ndarray, window: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """Put the values [W, N] of windows in row-major order together, without padding: [H', W']."""
    rows, columns = -(-grid[0] // window[0]), -(-grid[1] // window[1])
    tiles = values.reshape(rows, columns, window[0], window[1]).transpose(0, 2, 1, 3)
    padded = tiles.reshape(rows * window[0], columns * window[1])
    return padded[: grid[0], : grid[1]]


@dataclass(frozen=True)
class EdgeCount:
    """How merging treats the photo's own edges; all over the tokens that the photo covers.

    Args:
        tokens: how many tokens that is.
        kept: slots that hold any of them.
        unmerged: share of them that share no slot.
        unmerged_on_edges: the same among the fifth of them with the photo's strongest gradient;
            above `unmerged` when the method protects edges. None when the photo is constant.
        gradient_merged: mean gradient of the photo at merged tokens, grey levels per pixel;
            None when there are none.
        gradient_unmerged: the same at tokens that share no slot.
    """

    tokens: int
    kept: int
    unmerged: float
    unmerged_on_edges: float | None
    gradient_merged: float | None
    gradient_unmerged: float | None


def count_edges(found: MergedMap, gradient: np.ndarray) -> EdgeCount:
    """Compare a merged map with the gradient [h, w] of the photo, see `photo_gradient`."""
    height, width = gradient.shape
    merged = found.merged[:height, :width].ravel()
    flat = gradient.ravel()
    strongest = np.argsort(-flat, kind="stable")[: max(1, round(EDGE_SHARE * flat.size))]
    return EdgeCount(
        tokens=flat.size,
        kept=len(np.unique(found.group[:height, :width])),
        unmerged=float(1 - merged.mean()),
        unmerged_on_edges=float(1 - merged[strongest].mean()) if flat.max() > 0 else None,
        gradient_merged=float(flat[merged].mean()) if merged.any() else None,
        gradient_unmerged=float(flat[~merged].mean()) if not merged.all() else None,
    )


def resized_photo(rgb: np.ndarray, geometry: ImageGeometry, scale: float = 1.0) -> np.ndarray:
    """Return the photo as it lies in the encoder's input, uint8 [h, w, 3], without padding.

    Args:
        rgb: uint8 [H, W, 3].
        scale: pixels of the result per pixel of the encoder's input.
    """
    height, width = (max(1, round(side * scale)) for side in geometry.input_size)
    photo = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))


def photo_gradient(rgb: np.ndarray, geometry: ImageGeometry, token: int) -> np.ndarray:
    """Return the mean Sobel magnitude of the photo's grey levels in every token's patch.

    Args:
        rgb: uint8 [H, W, 3].
        token: side of a patch in pixels of the encoder's input.

    Returns:
        float64 [h, w] for the tokens that the photo covers at least by half per side, in grey
        levels per pixel. Padding of the input is no edge: the photo's border is replicated.
    """
    grey = resized_photo(rgb, geometry).astype(np.float64) @ (0.299, 0.587, 0.114)
    padded = np.pad(grey, 1, mode="edge")
    down = padded[:-2] + 2 * padded[1:-1] + padded[2:]  # smoothed along y
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    magnitude = np.hypot(down[:, 2:] - down[:, :-2], across[2:] - across[:-2]) / 8
    rows, columns = (max(1, round(side / token)) for side in grey.shape)
    patches = np.full((rows * token, columns * token), np.nan)
    part = magnitude[: rows * token, : columns * token]
    patches[: part.shape[0], : part.shape[1]] = part
    patches = patches.reshape(rows, token, columns, token)
    return np.asarray(np.nanmean(patches, axis=(1, 3)))
