"""Masks as they travel: run lengths, a PNG, packed bits; logits as FP16."""

from __future__ import annotations

import base64
import binascii
import io
import time

import numpy as np
from PIL import Image

from structsam.mask_runs import runs_of
from structsam_export.predict.everything.coco_masks import coco_rle
from structsam_export.serve.found import FoundEverything, FoundMasks
from structsam_export.serve.refusals import Refusal
from structsam_export.serve.schemas import (
    EverythingAnswer,
    EverythingMask,
    Mask,
    MaskFormat,
    MasksAnswer,
)


def masks_answer(found: FoundMasks, kind: MaskFormat, best: bool, with_logits: bool) -> MasksAnswer:
    """Put the masks of all prompts, or the best of each, into the form that was asked for."""
    masks, start = [], time.perf_counter()
    for prompt, scores in enumerate(found.scores):
        for place in [int(scores.argmax())] if best else range(len(scores)):
            mask = found.mask(prompt, place)
            masks.append(
                Mask(
                    prompt=prompt,
                    score=float(scores[place]),
                    area=int(mask.sum()),
                    counts=_counts(mask) if kind == "rle" else None,
                    data=None if kind == "rle" else _base64(_file_of(mask, kind)),
                    logits=_base64(found.low_res[prompt, place].astype("<f2").tobytes())
                    if with_logits
                    else None,
                )
            )
    return MasksAnswer(
        size=list(found.geometry.original_size),
        format=kind,
        masks=masks,
        decode_ms=found.decode_ms,
        upscale_ms=(time.perf_counter() - start) * 1e3,
    )


def everything_answer(found: FoundEverything) -> EverythingAnswer:
    """Put masks of everything into the form of their answer."""
    masks = [
        EverythingMask(counts=record["segmentation"]["counts"], **record)  # it ignores the rest
        for record in found.records
    ]
    return EverythingAnswer(size=list(found.size), masks=masks, ms=found.spent_ms)


def require_small_answer(size: tuple[int, int], masks: int, logits: int, most: int) -> None:
    """Refuse before any work what would be too large to answer.

    Args:
        size: (height, width) of the photo.
        masks: how many are asked for.
        logits: numbers that go with each; one counts as much as 16 pixels, which are bits.
        most: pixels of all masks together.

    Raises:
        Refusal: more than that.
    """
    asked = masks * (size[0] * size[1] + 16 * logits)
    if asked > most:
        what = f"{masks} masks of this photo{' with logits' if logits else ''}"
        raise Refusal(
            422,
            f"{what} are {asked / 1e6:.1f} Mpx together, and the limit is {most / 1e6:g} Mpx. Ask "
            "for fewer prompts a request, or for the `best` mask of each",
        )


def read_logits(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read the logits of an earlier answer as float32 `shape`. Raises `Refusal` for another."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, "mask_input is no base64. Give `logits` of an earlier answer") from None
    wanted = 2 * int(np.prod(shape))
    if len(data) != wanted:
        raise Refusal(
            422,
            f"mask_input holds {len(data)} bytes, and {wanted} are expected: FP16 of the shape "
            f"{list(shape)}. Give `logits` of an earlier answer",
        )
    logits = np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
    if not np.isfinite(logits).all():
        raise Refusal(422, "mask_input holds NaN or infinity. Give `logits` of an earlier answer")
    return logits


def _counts(mask: np.ndarray) -> str:
    size = mask.shape[0], mask.shape[1]
    return str(coco_rle(runs_of(mask, 0, 0, size), size)["counts"])


def _file_of(mask: np.ndarray, kind: MaskFormat) -> bytes:
    if kind == "bits":
        return np.packbits(mask).tobytes()
    buffer = io.BytesIO()
    Image.fromarray(mask).convert("L").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
