"""The contracts of a metric: of one mask, or of a whole set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from structsam.errors import UserError


class MaskMetric(ABC):
    """Scores one predicted mask against a reference, in 0..1.

    A subclass is one file in this folder, one line in `METRICS` and one function, `score`; its
    docstring states the rule for an empty mask and for two empty ones.

    Attributes:
        name: key in `METRICS`.
        title: for tables; an instance may add its settings.
        reference: what the prediction is compared with: the annotated mask, or the prediction of
            the unmerged model for the same prompt.
    """

    name: ClassVar[str]
    title: str
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[Literal["truth", "unmerged"]] = "truth"

    def __call__(
        self, predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
    ) -> float:
        """Compare bool masks [H, W]; pixels where `valid` [H, W] is False count for neither.

        Such a pixel is background in both masks, as everything outside the image is: its values
        never change a score. `truth` is the metric's `reference`.

        Returns NaN where the metric says nothing, as where no pixel is valid; means leave NaN out
        and count it.

        Raises:
            UserError: no bool masks, or of different sizes.
        """
        require_masks(predicted, truth, valid)
        if not (predicted.size if valid is None else valid.any()):
            return float("nan")
        if valid is not None:
            predicted, truth = predicted & valid, truth & valid
        return float(self.score(predicted, truth))

    @abstractmethod
    def score(self, predicted: np.ndarray, truth: np.ndarray) -> float:
        """Compare two bool masks of one size [H, W], of which every pixel counts."""


def require_masks(
    predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
) -> None:
    """Raise a `UserError` that names all shapes unless these are bool masks of one size [H, W]."""
    masks: dict[str, Any] = {"predicted": predicted, "truth": truth}
    if valid is not None:
        masks["valid"] = valid
    if all(
        isinstance(mask, np.ndarray)
        and mask.dtype == bool
        and mask.ndim == 2
        and mask.shape == predicted.shape
        for mask in masks.values()
    ):
        return
    found = ", ".join(f"{name} is {_describe(mask)}" for name, mask in masks.items())
    raise UserError(
        f"masks must be bool arrays of one size [H, W]: {found}. Resize the prediction to the "
        "annotated mask and threshold it (`logits > 0`)"
    )


def _describe(mask: object) -> str:
    if isinstance(mask, np.ndarray):
        return f"{mask.dtype} {list(mask.shape)}"
    return f"a {type(mask).__name__} of shape {list(getattr(mask, 'shape', ()))}"


@dataclass(frozen=True)
class Detection:
    """One predicted mask with its truth, for a metric of a whole set. Masks are COCO RLEs.

    Each annotated object stands in exactly one of them.

    Args:
        image_id: the image.
        category: class name.
        predicted: COCO RLE of the prediction, {"size": [H, W], "counts": bytes}, or None for an
            annotated object for which nothing was predicted.
        score: confidence of the prediction.
        truth: COCO RLE of the annotated object, or None for a detection without one.
        crowd: the truth is a crowd region.
        area: of the truth in pixels, as annotated; 0 takes the mask's.
    """

    image_id: str
    category: str
    predicted: dict[str, Any] | None
    score: float
    truth: dict[str, Any] | None
    crowd: bool = False
    area: float = 0.0


class SetMetric(ABC):
    """Scores all masks of a set together, as average precision does.

    Attributes:
        name: key in `METRICS`.
        title: for tables; an instance may add its settings.
    """

    name: ClassVar[str]
    title: str
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, detections: Sequence[Detection]) -> dict[str, float]:
        """Return {column: value in 0..1}; NaN where there is nothing to score."""
