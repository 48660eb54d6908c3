"""How far one result is from its reference: embedding, masks, scores and slots.

Letters: Q prompts, h w size of the embedding, B' maps, N tokens and M slots of one map.
"""

from __future__ import annotations

import numpy as np

from structsam_export.parity.reference import Reference
from structsam_export.runtimes.base import Arrays

#: Smallest union of two masks, as a share of the picture, whose IoU is judged.
MIN_MASK_AREA = 0.001


def compare(
    reference: Reference,
    embedding: np.ndarray,
    masks: np.ndarray,
    scores: np.ndarray,
    plans: Arrays | None,
) -> tuple[dict[str, float], dict[int, float]]:
    """Measure one result against its reference.

    Args:
        embedding: [1, 256, h, w].
        masks: bool [Q, 4, 4h, 4w].
        scores: [Q, 4].
        plans: `slot_of_token.I` and `anchor_of_slot.I` per block; None when not available.

    Returns:
        Metrics by name, and per block the share of tokens whose slot has the same destination.
        Masks whose union is below `MIN_MASK_AREA` do not count: one pixel decides their IoU.
    """
    a, b = reference.embedding.astype(np.float64).ravel(), embedding.astype(np.float64).ravel()
    finite = bool(np.isfinite(b).all())
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    iou = mask_iou(reference.masks, masks)
    large = np.logical_or(reference.masks, masks).mean((-2, -1)) >= MIN_MASK_AREA
    iou = iou[large] if large.any() else iou
    metrics = {
        "cosine": float(a @ b / (norm_a * norm_b)) if finite and norm_b else -1.0,
        "relative_l2": float(np.linalg.norm(a - b)) / norm_a if finite else float("inf"),
        "max_abs": _largest_difference(a, b),
        "mean_mask_iou": float(iou.mean()),
        "min_mask_iou": float(iou.min()),
        "masks_judged": float(iou.size),
        "max_score_error": _largest_difference(reference.scores, scores),
    }
    same: dict[int, float] = {}
    for index, (slots, anchors) in reference.plans.items() if plans is not None else ():
        assert plans is not None
        expected = np.take_along_axis(anchors, slots, 1)
        found = np.take_along_axis(
            plans[f"anchor_of_slot.{index}"], plans[f"slot_of_token.{index}"], 1
        )
        same[index] = float((expected == found).mean())
    if same:
        metrics["same_slot"] = float(np.mean(list(same.values())))
    return metrics, same


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of bool masks [..., H, W]; two empty masks count as 1."""
    intersection = np.logical_and(a, b).sum((-2, -1), dtype=np.int64)
    union = np.logical_or(a, b).sum((-2, -1), dtype=np.int64)
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    difference = float(np.abs(np.asarray(a, np.float64) - b).max())
    return difference if np.isfinite(difference) else float("inf")
