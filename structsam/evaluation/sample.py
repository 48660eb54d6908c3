"""What a dataset hands to the evaluation: one image, its objects, and what was wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from structsam.errors import UserError

#: Why an image or an object cannot be scored; counted by kind, and named, in every summary.
ProblemKind = Literal[
    "missing partner",  # an image without its mask, or a mask without its image
    "unreadable",  # a damaged file
    "sizes differ",  # image and mask have different sizes
    "empty mask",  # an annotated object without a single pixel
    "no object",  # an image with nothing to segment
    "too small",  # an object below the smallest area that makes a fair prompt
    # annotated, but no single object with an outline (groups, points, other findings), or one
    # without a pixel that may be scored
    "left out",
]


@dataclass(frozen=True)
class Problem:
    """One image or object that was left out: never silently."""

    image_id: str
    kind: ProblemKind
    detail: str


class ProblemError(UserError):
    """A whole image cannot be used. Datasets raise it from `load`; `--strict` lets it through."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.image_id}: {problem.kind}: {problem.detail}")
        self.problem = problem


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object to segment.

    Args:
        object_id: unique within its image.
        mask: bool [H, W].
        category: class name, or "" where the set has none.
        box: (x0, y0, x1, y1) in pixels, exclusive on the right and bottom, where the set brings
            one of its own (a detector's); None takes the mask's tight box.
        crowd: scored by COCO's crowd rule; left out of the other metrics.
        score: a detector's confidence in `box`, by which average precision ranks; None ranks by
            the model's predicted IoU.
        prompted: False for what only average precision counts: crowds, and objects that the
            detector missed. A detection without an object is prompted and has an empty mask.
    """

    object_id: str
    mask: np.ndarray
    category: str = ""
    box: tuple[float, float, float, float] | None = None
    crowd: bool = False
    score: float | None = None
    prompted: bool = True


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its objects.

    Args:
        image_id: unique within its set; never changes between runs.
        image: RGB uint8 [H, W, 3].
        objects: in a fixed order.
        valid: bool [H, W], False where a pixel must not be scored; None scores all.
        problems: what was left out of this image.
    """

    image_id: str
    image: np.ndarray
    objects: tuple[ObjectMask, ...]
    valid: np.ndarray | None = None
    problems: tuple[Problem, ...] = field(default=())
