"""What a user should know about masks before trusting them, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.prompts import Box

RANDOM_WEIGHTS_CAPTION = "random weights: masks carry no meaning"
#: A best score below this is worth a note. SAM scores what it expects the mask's IoU to be.
LOW_SCORE = 0.5


def bundle_notes(bundle: Bundle, boxes: Sequence[Box] | None) -> list[str]:
    """Say what holds for every mask of this bundle.

    Args:
        boxes: of the prompts; None where prompts have none by nature.
    """
    return [*trust_notes(bundle), *([_which_box(boxes)] if bundle.takes_box else [])]


def trust_notes(bundle: Bundle) -> list[str]:
    """Say how far masks of this bundle can be trusted."""
    notes = []
    if bundle.has_random_weights:
        notes.append(RANDOM_WEIGHTS_CAPTION)
    if bundle.model.weights == "embedded":
        notes.append(
            f"{bundle.model.name} is a small stand-in for trying things out: "
            "its masks are far below SAM's. Export vit_b with SAM's checkpoint for real ones"
        )
    parity = bundle.parity_verdict
    if parity and not parity.passed:
        notes.append(
            "this bundle failed parity when it was checked last, so masks may differ from "
            "PyTorch's: see parity.html in its folder"
        )
    return notes


def low_scores(scores: np.ndarray) -> list[str]:
    """Name the prompts whose best mask the model itself expects to be poor; scores [P, C]."""
    best = scores.max(axis=1)
    low = np.flatnonzero(best < LOW_SCORE)
    if len(low) == 0:
        return []
    shown = ", ".join(f"mask_{prompt:02d} {best[prompt]:.2f}" for prompt in low[:5])
    more = f" and {len(low) - 5} more" if len(low) > 5 else ""
    return [
        f"low score ({shown}{more}; good masks are near 1): the model itself expects a poor mask. "
        "Try another point, more points, or a box"
    ]


def _which_box(boxes: Sequence[Box] | None) -> str:
    """Say what the embedding of a prompt-aware bundle belongs to."""
    if boxes is None:
        return (
            "this bundle merges less where the prompt's box is, and points have no box: encoded "
            "for the whole photo. A bundle without it gives such masks as well"
        )
    if not boxes:
        return (
            "this bundle merges less where the prompt's box is, and no box was given: encoded for "
            "the whole photo. Add `boxes=x0,y0,x1,y1`"
        )
    if len(boxes) == 1:
        shown = ",".join(f"{value:g}" for value in boxes[0])
        return f"the embedding belongs to box {shown}: another box encodes the image again"
    return (
        f"the image was encoded once for each of the {len(boxes)} boxes: an embedding of this "
        "bundle belongs to one box"
    )
