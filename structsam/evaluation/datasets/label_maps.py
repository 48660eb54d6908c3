"""Label maps to objects: one per label, or one per connected region of a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.sample import ObjectMask


def labels_in(labels: np.ndarray) -> list[int]:
    """Return the positive labels of an int array [H, W], in order.

    >>> labels_in(np.array([[0, 7], [2, 7]]))
    [2, 7]
    """
    return [int(label) for label in np.unique(labels) if label > 0]


def object_per_label(
    labels: np.ndarray, chosen: Iterable[int], category: Callable[[int], str] = lambda label: ""
) -> list[ObjectMask]:
    """Make one object of each label in `chosen`; its id is the label.

    Args:
        labels: int [H, W].
        category: the class name of a label.
    """
    return [ObjectMask(str(label), labels == label, category(label)) for label in chosen]


def object_per_region(
    labels: np.ndarray, chosen: Iterable[int], category: Callable[[int], str]
) -> Iterator[ObjectMask]:
    """Make one object of each 8-connected region; ids are `LABEL-NUMBER`, in reading order.

    Raises:
        UserError: scipy is missing.
    """
    try:
        from scipy import ndimage
    except ImportError:
        raise UserError(
            "regions of label maps need scipy. Install it with `pip install 'structsam[eval]'`"
        ) from None
    for label in chosen:
        regions, count = ndimage.label(labels == label, np.ones((3, 3)))
        for number in range(1, count + 1):
            yield ObjectMask(f"{label}-{number}", regions == number, category(label))
