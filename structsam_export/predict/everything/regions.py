"""Small islands of a mask go, and small holes in it are filled."""

from __future__ import annotations

import numpy as np

from structsam.errors import UserError


def without_small_regions(mask: np.ndarray, area: int) -> np.ndarray | None:
    """Fill holes below `area` pixels, then drop islands below it; the largest island stays always.

    Regions touch across corners, too.

    Args:
        mask: bool [H, W].

    Returns:
        The mended mask; None where nothing had to be mended.

    Raises:
        UserError: scipy is not installed.
    """
    filled = _filled(mask, area)
    mended = _largest(mask if filled is None else filled, area)
    return filled if mended is None else mended


def _filled(mask: np.ndarray, area: int) -> np.ndarray | None:
    regions, sizes = _regions(~mask)
    small = np.append(False, sizes < area)
    return mask | small[regions] if small.any() else None


def _largest(mask: np.ndarray, area: int) -> np.ndarray | None:
    regions, sizes = _regions(mask)
    small = sizes < area
    if not small.any():
        return None
    if small.all():
        small[sizes.argmax()] = False
    return np.asarray(np.append(False, ~small)[regions])


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of every pixel's region, int [H, W], 0 outside, and the pixels of each."""
    ndimage = load_ndimage()
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    return regions, np.bincount(regions.ravel(), minlength=count + 1)[1:]


def load_ndimage():  # type: ignore[no-untyped-def]
    """Import `scipy.ndimage`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from scipy import ndimage
    except ImportError as error:
        raise UserError(
            f"`min_mask_region_area=` needs scipy ({error}). "
            "Install it with `pip install 'structsam[masks]'`"
        ) from error
    return ndimage
