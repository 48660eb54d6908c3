"""From prompts to what the decoder is fed, in pieces that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.manifest import Part
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.prompts import Prompts, check_numbers


def decoder_feeds(
    decoder: Part, prompts: Prompts, geometry: ImageGeometry, mask_input: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the decoder's inputs for P prompts of K points, all but the embedding, float32.

    Args:
        decoder: its contract.
        mask_input: logits of an earlier prediction, [1, h, w], or [P, 1, h, w] for many prompts.

    Raises:
        UserError: more points than the decoder takes, or logits of another shape.
    """
    count, length = prompts.labels.shape
    limit = decoder.profile["K"][2]
    if length > limit:
        raise UserError(
            f"the prompt has {length} points (a box counts as 2, a prompt without a box has "
            f"one more for padding), and this bundle takes up to {limit}. Use fewer points"
        )
    shape = next(s.shape[1:] for s in decoder.inputs if s.name == "mask_input")
    masks = np.zeros((count, *map(int, shape)), np.float32)
    if mask_input is not None:
        expected = masks.shape if prompts.many else masks.shape[1:]
        masks[:] = check_numbers("mask_input", mask_input, expected).reshape(masks.shape)
    return {
        "point_coords": geometry.to_input(prompts.coords),
        "point_labels": prompts.labels,
        "mask_input": masks,
        "has_mask_input": np.full(count, mask_input is not None, np.float32),
    }


def in_chunks(decoder: Part, feeds: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cut P to what the decoder takes; a short rest is filled with copies, to be dropped later."""
    low, _, high = decoder.profile["P"]
    for start in range(0, len(feeds["has_mask_input"]), high):
        chunk = {name: array[start : start + high] for name, array in feeds.items()}
        missing = low - len(chunk["has_mask_input"])
        if missing > 0:
            chunk = {n: np.concatenate([a, a[-1:].repeat(missing, 0)]) for n, a in chunk.items()}
        yield chunk
