"""The metrics of one run: means, and the paired difference to the unmerged run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.bootstrap import Estimate, intervals, per_image
from structsam.evaluation.mask_rle import rle_dict, rle_iou
from structsam.evaluation.metrics import METRICS, Detection, SetMetric
from structsam.evaluation.read_results import RunRows

Groups = Literal["category", "size"]

_AREAS = (("small", 32**2), ("medium", 96**2), ("large", float("inf")))  # COCO's


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one run.

    Args:
        mean: over all masks.
        missing: masks for which the metric is undefined.
        difference: mean of this run minus the unmerged run's; None for that run itself.
        verdict: `better`, `worse`, `no difference`, `not tested` (too few images), or empty.
        groups: the mean by category or size, where asked for.
    """

    name: str
    title: str
    higher_is_better: bool
    mean: Estimate
    missing: int
    difference: Estimate | None = None
    verdict: str = ""
    groups: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Masks of a run and of the unmerged run that answer the same prompt for the same object.

    Args:
        run, base: int [P], rows of the two.
        images: in how many images they lie.
        other: images of both runs that were left out because objects or prompts differ.
    """

    run: np.ndarray
    base: np.ndarray
    images: int
    other: list[str]


def pair(rows: RunRows, base: RunRows) -> Pairs:
    """Match the masks of two runs on the images that are whole in both."""
    found, theirs = _by_object(rows), _by_object(base)
    mine: list[int] = []
    partners: list[int] = []
    images, other = 0, []
    for image_id, prompts in found.items():
        expected = theirs.get(image_id)
        if expected is None:
            continue
        if prompts.keys() != expected.keys():
            other.append(image_id)
            continue
        images += 1
        mine += prompts.values()
        partners += (expected[key] for key in prompts)
    return Pairs(np.array(mine, np.int64), np.array(partners, np.int64), images, other)


def _by_object(rows: RunRows) -> dict[str, dict[tuple[str, str], int]]:
    found: dict[str, dict[tuple[str, str], int]] = {name: {} for name in rows.image_ids}
    keys = zip(rows.image.tolist(), rows.objects, rows.prompts, strict=True)
    for i, (image, object_id, prompt) in enumerate(keys):
        found[rows.image_ids[image]][object_id, prompt] = i
    return found


def run_metrics(
    rows: RunRows,
    base: RunRows | None,
    pairs: Pairs | None,
    by: Groups | None,
    level: float,
    resamples: int,
) -> tuple[dict[str, MetricSummary], Estimate | None]:
    """Compute all metrics of a run from one draw of images."""
    masks, count = len(rows.image), len(rows.metrics)
    table = np.full((masks, 2 * count + 1), np.nan)
    table[:, :count] = rows.values
    if base is not None and pairs is not None:
        for k, name in enumerate(rows.metrics):
            if name in base.metrics:
                theirs = base.values[pairs.base, base.metrics.index(name)]
                table[pairs.run, count + k] = rows.values[pairs.run, k] - theirs
        if rows.rle and base.rle:
            table[pairs.run, -1] = _disagreement(rows, base, pairs)
    images = len(rows.image_ids)
    found = intervals(*per_image(table, rows.image, images), level=level, resamples=resamples)
    metrics = {}
    for k, name in enumerate(rows.metrics):
        known = METRICS.get(name)
        higher = known.higher_is_better if known else True
        missing = int(np.isnan(rows.values[rows.scored, k]).sum())
        groups = _groups(rows, k, by, level, resamples) if by else {}
        difference = found[count + k] if pairs is not None else None
        title = getattr(known, "title", name)
        verdict = verdict_of(difference, higher)
        metrics[name] = MetricSummary(
            name, title, higher, found[k], missing, difference, verdict, groups
        )
    return metrics, found[-1] if found[-1].masks else None


def verdict_of(difference: Estimate | None, higher_is_better: bool) -> str:
    """Say `better`, `worse`, `no difference` or `not tested`; empty without a difference."""
    if difference is None:
        return ""
    if difference.verdict in ("higher", "lower"):
        return "better" if (difference.verdict == "higher") == higher_is_better else "worse"
    return difference.verdict


def _disagreement(rows: RunRows, base: RunRows, pairs: Pairs) -> list[float]:
    """1 - IoU of each pair of masks; NaN where a mask is not scored."""
    found = []
    for i, j in zip(pairs.run.tolist(), pairs.base.tolist(), strict=True):
        try:
            iou = np.nan if not rows.scored[i] else rle_iou(rows.rle[i], base.rle[j], rows.sizes[i])
        except UserError as error:
            image = rows.image_ids[rows.image[i]]
            raise UserError(f"rows of {rows.name} or {base.name}, image {image}: {error}") from None
        found.append(1 - iou)
    return found


def _groups(
    rows: RunRows, column: int, by: Groups, level: float, resamples: int
) -> dict[str, Estimate]:
    if by == "category":
        labels = np.array([category or "without category" for category in rows.categories])
        names: Iterable[str] = sorted(set(labels.tolist()))
    else:
        labels = np.array([next(n for n, most in _AREAS if area < most) for area in rows.areas])
        names = [name for name, _ in _AREAS if name in labels]
    found = {}
    for name in names:
        chosen = (labels == name) & rows.scored
        images, image = np.unique(rows.image[chosen], return_inverse=True)
        sums, counts = per_image(rows.values[chosen, column : column + 1], image, len(images))
        found[str(name)] = intervals(sums, counts, level=level, resamples=resamples)[0]
    return found


def set_metrics(rows: RunRows) -> dict[str, float]:
    """Average precision, where masks have categories."""
    if not any(rows.categories):
        return {}

    def rle(counts: str, size: tuple[int, int]) -> dict[str, Any] | None:
        return rle_dict(counts, size) if counts else None

    detections = [
        Detection(
            rows.image_ids[rows.image[i]],
            rows.categories[i],
            rle(rows.rle[i], rows.sizes[i]),
            rows.scores[i],
            rle(rows.truth_rle[i], rows.sizes[i]),
            bool(rows.crowd[i]),
            float(rows.areas[i]),
        )
        for i in range(len(rows.image))
    ]
    found: dict[str, float] = {}
    for kind in METRICS.values():
        if issubclass(kind, SetMetric):
            found |= kind()(detections)
    return found
