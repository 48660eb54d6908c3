"""Triton model: the bytes of an image file and prompts -> masks and scores, as `predict` gives.

`Predictor` does the work; only its networks are models of the server. Embeddings are kept by the
hash of the file, up to a number of bytes, so that the next prompt on a photo costs the decoder
alone; the photo is not even decoded then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.folder import open_bundle
from structsam_export.predict.embedding_file import photo_id
from structsam_export.predict.image_cache import ImageCache
from structsam_export.predict.image_file import read_image_bytes
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.prompts import AskedPrompts, check_numbers
from structsam_export.triton.models.requests import (
    Arrays,
    answered,
    array_of,
    parameters,
    photo_of,
)
from structsam_export.triton.models.served_networks import ServedNetworks


class PhotoMasks:
    """Masks of photos that come as bytes.

    Args:
        max_bytes: of the embeddings that are kept; the latest is kept whatever its size.
    """

    def __init__(self, predictor: Predictor, max_bytes: int) -> None:
        self._predictor = predictor
        self._cache = ImageCache(max_bytes)

    def masks(self, photo: bytes, prompts: AskedPrompts) -> Arrays:
        """Return `masks` bool [P, C, H, W] and `scores` float32 [P, C].

        C is 1, the mask that `predict` writes, or 3 where all masks are asked for.

        Raises:
            UserError: no image, no prompt, or one that does not fit the photo or the bundle.
        """
        if not prompts.points and not prompts.boxes:
            raise UserError("no prompt. Send `points` with `labels`, or `boxes`, or both")
        self._set_photo(photo)
        scores, low_res = self._predictor.predict_asked(prompts)
        if not prompts.all_masks:
            best = scores.argmax(axis=1)[:, None]
            scores = np.take_along_axis(scores, best, axis=1)
            low_res = np.take_along_axis(low_res, best[..., None, None], axis=1)
        return {
            "masks": self._predictor.upscale(low_res),
            "scores": np.asarray(scores, np.float32),
        }

    def _set_photo(self, photo: bytes) -> None:
        known_as = photo_id(photo)
        known = self._cache.get(known_as)
        if known is not None:
            self._predictor.set_encoded_image(known)
            return
        self._predictor.set_image(read_image_bytes(photo, "photo"))
        self._cache.put(known_as, self._predictor.encoded_image)


def asked(
    points: np.ndarray | None,
    labels: np.ndarray | None,
    boxes: np.ndarray | None,
    all_masks: bool,
) -> AskedPrompts:
    """Read the inputs of a request: points [N, 2] with labels [N], or none: 1, and boxes [P, 4].

    Raises:
        UserError: not a label for each point, values that are not finite, or points with several
            boxes.
    """
    places = np.empty((0, 2)) if points is None else check_numbers("points", points)
    corners = np.empty((0, 4)) if boxes is None else check_numbers("boxes", boxes)
    marks = np.ones(len(places)) if labels is None else labels
    if len(marks) != len(places):
        raise UserError(
            f"{len(marks)} labels for {len(places)} points. Send 1 (foreground) or 0 (background) "
            "for each point"
        )
    return AskedPrompts(
        tuple((float(x), float(y), int(m)) for (x, y), m in zip(places, marks, strict=True)),
        tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in corners),
        all_masks,
    )


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the manifest of the bundle, which lies beside the code."""
        told = parameters(args)
        bundle = open_bundle(Path(args["model_repository"]) / args["model_version"], verify=False)
        networks = ServedNetworks({"encoder": told["encoder"], "decoder": told["decoder"]})
        self._masks = PhotoMasks(Predictor(bundle, networks), int(told["cache_mb"]) << 20)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [answered(request, self._work) for request in requests]

    def _work(self, request: Any) -> Arrays:
        multimask = array_of(request, "multimask")
        prompts = asked(
            array_of(request, "points"),
            array_of(request, "labels"),
            array_of(request, "boxes"),
            all_masks=multimask is not None and bool(multimask.all()),
        )
        return self._masks.masks(photo_of(request), prompts)
