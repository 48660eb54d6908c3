"""How far a result is from its reference, the gates that it must keep, and the verdict of all rows.

Letters: Q prompts, h w size of the embedding, B' maps, N tokens and M slots of one map.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from structsam.mask_iou import mask_area, mask_iou
from structsam_export.bundle.features import Features
from structsam_export.bundle.manifest import PLAN_TENSORS
from structsam_export.graph.precisions import PRECISIONS, is_quantized
from structsam_export.parity.reference import Reference
from structsam_export.runtimes.base import Arrays

#: What is judged of an encoder alone; masks and scores need a decoder.
EMBEDDING_GATES = ("cosine", "relative_l2")

#: Smallest union of two masks, as a share of the picture, whose IoU is judged.
MIN_MASK_AREA = 0.001

#: Per precision: metric -> (direction, tolerance). "max": at most; "min": at least.
GATES: dict[str, dict[str, tuple[str, float]]] = {
    "fp32": {
        "relative_l2": ("max", 1e-4),
        "mean_mask_iou": ("min", 0.999),
        "max_score_error": ("max", 1e-3),
    },
    "fp16": {
        "cosine": ("min", 0.999),
        "mean_mask_iou": ("min", 0.99),
        "min_mask_iou": ("min", 0.95),
        "max_score_error": ("max", 0.05),
    },
}
#: Measured with the same slots on photos: docs/int8.md. What other slots do is beyond them.
_INT8_GATES: dict[str, tuple[str, float]] = {
    "cosine": ("min", 0.999),
    "mean_mask_iou": ("min", 0.96),
    "min_mask_iou": ("min", 0.55),
    "max_score_error": ("max", 0.05),
}
GATES |= dict.fromkeys(filter(is_quantized, PRECISIONS), _INT8_GATES)


def compare(
    reference: Reference,
    features: Features,
    masks: np.ndarray,
    scores: np.ndarray,
    plans: Arrays | None,
) -> tuple[dict[str, float], dict[int, float]]:
    """Measure one result against its reference.

    Args:
        features: what the decoder takes: `image_embeddings` [1, 256, h, w], and others.
        masks: bool [Q, 4, 4h, 4w].
        scores: [Q, 4].
        plans: `slot_of_token.I` and `anchor_of_slot.I` per block; None when not available.

    Returns:
        Metrics by name, those of feature maps of the worst one, those of masks where there is a
        decoder, and per block the share of tokens whose slot has the same destination.
    """
    maps = [_map_metrics(map_, features[name]) for name, map_ in reference.features.items()]
    metrics = {
        "cosine": min(each["cosine"] for each in maps),
        "relative_l2": max(each["relative_l2"] for each in maps),
        "max_abs": max(each["max_abs"] for each in maps),
    }
    if reference.masks.size:
        iou = judged_iou(reference.masks, masks)
        metrics |= {
            "mean_mask_iou": float(iou.mean()),
            "min_mask_iou": float(iou.min()),
            "masks_judged": float(iou.size),
            "max_score_error": _largest_difference(reference.scores, scores),
        }
    same: dict[int, float] = {}
    for index, (slots, anchors) in reference.plans.items() if plans is not None else ():
        assert plans is not None
        found = (plans[f"{name}.{index}"] for name in PLAN_TENSORS)
        same[index] = float((_destinations(slots, anchors) == _destinations(*found)).mean())
    if same:
        metrics["same_slot"] = float(np.mean(list(same.values())))
    return metrics, same


def _map_metrics(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Compare one feature map [1, C, h, w] with its reference."""
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    finite = bool(np.isfinite(b).all())
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return {
        "cosine": float(a @ b / (norm_a * norm_b)) if finite and norm_b else -1.0,
        "relative_l2": float(np.linalg.norm(a - b)) / norm_a if finite else float("inf"),
        "max_abs": _largest_difference(a, b),
    }


def judged_iou(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the IoU of bool masks [..., H, W] that count, float64 [masks].

    Masks whose union is below `MIN_MASK_AREA` do not, if any is above: one pixel decides their IoU.
    """
    iou = mask_iou(expected, found)
    pixels = found.shape[-2] * found.shape[-1]
    large = mask_area(expected | found) >= MIN_MASK_AREA * pixels
    return iou[large] if large.any() else iou.ravel()


def _destinations(slots: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Where every token [B', N] stands; -1 for one whose slot is none of [B', M]."""
    is_slot = (slots >= 0) & (slots < anchors.shape[1])
    return np.where(is_slot, np.take_along_axis(anchors, np.where(is_slot, slots, 0), 1), -1)


def keeps_gates(metrics: dict[str, float], precision: str) -> bool:
    """Whether all metrics keep to the gates of the precision."""
    masks = "masks_judged" in metrics
    return all(passes(metrics[name], gate) for name, gate in gates_of(precision, masks).items())


def gates_of(precision: str, masks: bool = True) -> dict[str, tuple[str, float]]:
    """Return the gates of a precision; without masks those of the embedding."""
    gates = GATES[precision]
    return gates if masks else {name: gates[name] for name in gates if name in EMBEDDING_GATES}


def passes(value: float, gate: tuple[str, float]) -> bool:
    """Whether a metric keeps to its gate."""
    direction, tolerance = gate
    return value <= tolerance if direction == "max" else value >= tolerance


@dataclass(frozen=True)
class ParityRow:
    """One backend on one image. `metrics` is empty when it was not run.

    Args:
        same_slot: block -> share of tokens with the same destination as in the reference.
        followed: of a result off its gates: `metrics` against PyTorch with this backend's slots,
            and `same_slot`, what PyTorch would have chosen alike from the same input.
        traceback: where a backend broke, for who mends it.
    """

    backend: str
    image: str
    status: str  # "passed", "failed" or "not run"
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    same_slot: dict[int, float] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    followed: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""


@dataclass
class ParityReport:
    """The verdict over all rows. False when a row failed or when nothing ran.

    Args:
        slots: that slots are not compared, and why; empty where they are.
        cost: of an INT8 bundle what INT8 costs against FP32, beside the verdict.
        page: the written report.
        masks: whether the model has a decoder, so that masks are compared.
    """

    bundle: str
    precision: str
    random_weights: bool
    rows: list[ParityRow] = field(default_factory=list)
    slots: str = ""
    cost: str = ""
    page: Path | None = None
    masks: bool = True

    def __bool__(self) -> bool:
        statuses = [row.status for row in self.rows]
        return "passed" in statuses and "failed" not in statuses

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 2 nothing could be run."""
        if self:
            return 0
        return 1 if any(row.status == "failed" for row in self.rows) else 2

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form, with the gates that were applied."""
        return {
            "passed": bool(self),
            "bundle": self.bundle,
            "precision": self.precision,
            "random_weights": self.random_weights,
            "slots": self.slots or "compared",
            "cost": self.cost,
            "gates": {name: list(gate) for name, gate in self.gates.items()},
            "rows": [_strict(asdict(row)) for row in self.rows],
        }

    @property
    def gates(self) -> dict[str, tuple[str, float]]:
        """The gates that were applied."""
        return gates_of(self.precision, self.masks)

    def verdict(self) -> str:
        """Say in one line how it ended, and which values are off their gates."""
        alone = "" if self.masks else "of the embedding: the model has no decoder"
        note = "".join(f"; {each}" for each in (alone, self.slots, self.cost) if each)
        if self:
            ties = dict.fromkeys(row.image for row in self.rows if row.followed)
            told = f"; ties ranked otherwise on {', '.join(ties)}" if ties else ""
            return f"parity passed ({self.precision}){told}{note}"
        failed = [row for row in self.rows if row.status == "failed"]
        if not failed:
            reasons = {row.reason for row in self.rows}
            return "parity not run: " + ("; ".join(sorted(reasons)) or "no backend was asked")
        parts = []
        for row in failed:
            if not row.metrics:
                parts.append(f"{row.backend} broke: {row.reason}")
                continue
            missed = [
                f"{name} {row.metrics[name]:.6g} (gate {gate[1]:g})"
                for name, gate in self.gates.items()
                if not passes(row.metrics[name], gate)
            ]
            why = f"; {row.reason}" if row.reason else ""
            parts.append(f"{row.backend} on {row.image}: {', '.join(missed)}{why}")
        return "parity FAILED: " + ". ".join(parts) + note


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    difference = float(np.abs(np.asarray(a, np.float64) - b).max())
    return difference if np.isfinite(difference) else float("inf")


def _strict(facts: Any) -> Any:
    """JSON has no infinity; a result that holds NaN is infinitely far off."""
    if isinstance(facts, dict):
        return {name: _strict(value) for name, value in facts.items()}
    return "infinite" if isinstance(facts, float) and not np.isfinite(facts) else facts
