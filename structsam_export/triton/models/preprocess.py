"""Triton model: the bytes of an image file -> the encoder's input, as `predict` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from structsam.models import Preprocessing
from structsam_export.bundle.manifest import read_manifest
from structsam_export.predict.image_file import read_image_bytes
from structsam_export.predict.preprocessing import preprocess
from structsam_export.triton.models.requests import Arrays, answered, photo_of


def network_input(photo: bytes, how: Preprocessing) -> Arrays:
    """Return `image` float32 [1, 3, S, S], `original_size` and `input_size` int64 [2], (H, W).

    Args:
        photo: the content of an image file.

    Raises:
        UserError: no image, or one that cannot be used.
    """
    image, geometry = preprocess(read_image_bytes(photo, "photo"), how)
    return {
        "image": image,
        "original_size": np.array(geometry.original_size, np.int64),
        "input_size": np.array(geometry.input_size, np.int64),
    }


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the manifest of the bundle, which lies beside the code."""
        manifest = read_manifest(Path(args["model_repository"]) / args["model_version"])
        self._how = Preprocessing.from_dict(manifest["preprocessing"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [answered(request, self._work) for request in requests]

    def _work(self, request: Any) -> Arrays:
        return network_input(photo_of(request), self._how)
