"""Prompts from a true mask, the same in every run: boxes with noise, clicks, three clicks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.protocols import INPUT_SIDE, Box, EvaluationProtocol, MaskPredictor

PromptKind = Literal["box", "click", "three-click"]
_CLICKS = {"click": 1, "three-click": 3}
_MOST_NOISE = 20  # pixels of SAM's input, as in training (paper, appendix A)


@dataclass(frozen=True)
class Prompting:
    """Which prompts are given.

    Args:
        kind: `box`; `click`, at the mask's innermost point, best of three masks by predicted IoU;
            or `three-click`: two more clicks follow, each at the innermost point of the largest
            region that is still wrong, with the mask so far as mask prompt.
        box_noise: standard deviation of each corner's noise as a share of the box's sides, in
            0..1, cut at 20 pixels of the 1024 (SAM's training noise is 0.1).
        seed: of the noise.
        multimask: for a box, the best of three masks by predicted IoU instead of the single one.
    """

    kind: PromptKind = "box"
    box_noise: float = 0.0
    seed: int = 0
    multimask: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(PromptKind):
            raise UserError(
                f"unknown prompt {self.kind!r}. Choose one of: {', '.join(get_args(PromptKind))}"
            )
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is out of range. Use 0 or more")
        if not 0 <= self.box_noise <= 1:
            raise UserError(f"box noise {self.box_noise} is out of range. Use 0 to 1, such as 0.1")
        if self.kind != "box" and (self.box_noise or self.multimask):
            raise UserError(
                f"box noise and multimask belong to box prompts, not to {self.kind}. Drop them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "prompt": self.kind,
            "box_noise": self.box_noise,
            "seed": self.seed,
            "multimask": self.multimask,
        }


def segment(
    predictor: MaskPredictor,
    protocol: EvaluationProtocol,
    prompting: Prompting,
    image_id: str,
    masks: list[np.ndarray],
    boxes: list[Box | None],
    object_ids: list[str],
    valid: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, list[Box]]:
    """Prompt for every object of the current image.

    Args:
        masks: P bool masks as `protocol.prompt_mask` gives them, all of one size [H', W'].
        boxes: P boxes in pixels of the prepared image that replace the tight ones, or None.
        valid: bool [H', W'], where a correcting click may lie; None is everywhere.

    Returns:
        logits float32 [P, 256, 256], predicted IoU [P], and the boxes.

    Raises:
        UserError: boxes of a detector with clicks.
    """
    sides = masks[0].shape
    found = [b or protocol.box(m) for m, b in zip(masks, boxes, strict=True)]
    if prompting.kind == "box":
        if prompting.box_noise:
            found = [
                _noisy(box, prompting, f"{image_id}/{name}", sides)
                for box, name in zip(found, object_ids, strict=True)
            ]
        scores, low_res = predictor.predict_low_res(
            box=np.array(found), multimask_output=prompting.multimask
        )
        return *_best(scores, low_res), found
    if any(box is not None for box in boxes):
        raise UserError(
            f"the set brings boxes of its own, and {prompting.kind} asks by points. Use `box`"
        )
    # whole pixels: `SamPredictor` moves them to the middle of a pixel of its input by itself
    coords = np.array([[innermost(mask)] for mask in masks], np.float64)
    labels = np.ones(coords.shape[:2])
    low_res, best = _best(*predictor.predict_low_res(coords, labels, multimask_output=True))
    for _ in range(_CLICKS[prompting.kind] - 1):
        current = predictor.upscale(low_res)
        clicks = [correction(now, mask, valid) for now, mask in zip(current, masks, strict=True)]
        more = np.array([[point] for point, _ in clicks], np.float64)
        coords = np.concatenate([coords, more], 1)
        labels = np.concatenate([labels, [[label] for _, label in clicks]], 1)
        low_res, best = _best(
            *predictor.predict_low_res(
                coords, labels, mask_input=low_res[:, None], multimask_output=False
            )
        )
    return low_res, best, found


def _best(scores: np.ndarray, low_res: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of C masks a prompt, keep the one with the highest predicted IoU: [P, h, w] and [P]."""
    rows, best = np.arange(len(scores)), scores.argmax(1)
    return low_res[rows, best], scores[rows, best]


def _noisy(box: Box, prompting: Prompting, name: str, sides: tuple[int, ...]) -> Box:
    """Move each corner; the draw depends on the object alone, not on what ran before."""
    rng = np.random.default_rng([prompting.seed, zlib.crc32(name.encode())])
    corners = np.array(box).reshape(2, 2)
    extent = corners[1] - corners[0]
    most = _MOST_NOISE * max(sides) / INPUT_SIDE
    moved = corners + np.clip(rng.normal(0, 1, (2, 2)) * prompting.box_noise * extent, -most, most)
    moved = np.clip(moved, 0, (sides[1], sides[0]))
    if (moved[1] <= moved[0]).any():  # noise larger than a thin object: keep its true box
        return box
    x0, y0, x1, y1 = moved.ravel().tolist()
    return x0, y0, x1, y1


def innermost(region: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the pixel of a bool region [H, W] farthest from its outside.

    The image's border counts as outside; ties go to the first in reading order.

    >>> innermost(np.array([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]], bool))
    (2, 1)
    """
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = region[top : rows[-1] + 1, left : columns[-1] + 1]
    depth = distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return left + int(x), top + int(y)


def correction(
    predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None
) -> tuple[tuple[int, int], int]:
    """Return the next click (x, y) and its label, 1 for object, for bool masks [H, W].

    The click is the innermost point of the largest wrong region; where nothing is wrong, that of
    the object again. What is not `valid` is not wrong: nobody knows what it is.
    """
    from scipy.ndimage import label

    wrong = predicted != truth
    if valid is not None:
        wrong = wrong & valid
    if not wrong.any():
        return innermost(truth), 1
    regions, _ = label(wrong)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    x, y = innermost(regions == sizes.argmax())
    return (x, y), int(truth[y, x])
