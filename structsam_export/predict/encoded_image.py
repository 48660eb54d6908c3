"""An image as a predictor holds it: set aside, kept elsewhere, and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from structsam_export.bundle.features import from_arrays, to_arrays
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.runtimes.device_tensor import DeviceTensor, HostTensor


@dataclass(frozen=True)
class EncodedImage:
    """What `Predictor.set_image` made of an image.

    Args:
        geometry: its size, and its place in the encoder's input.
        features: of the encoder, by name; None where it waits for a prompt's box.
        network_input: float32 [1, 3, S, S] of a prompt-aware bundle, which encodes for every box.
        prompt_box: that the features of a prompt-aware bundle belongs to.
    """

    geometry: ImageGeometry
    features: Mapping[str, DeviceTensor] | None
    network_input: np.ndarray | None = None
    prompt_box: tuple[float, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        held = 0 if self.network_input is None else self.network_input.nbytes
        maps = self.features.values() if self.features else ()
        return held + sum(map_.nbytes for map_ in maps)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what `from_arrays` takes, for a file."""
        place = self.geometry
        arrays = {
            "geometry": np.array([*place.original_size, *place.input_size, place.image_size]),
            "upsample_probabilities": np.array(place.upsample_probabilities),
        }
        if self.features is not None:
            arrays |= to_arrays({name: map_.numpy() for name, map_ in self.features.items()})
        if self.network_input is not None:
            arrays["network_input"] = self.network_input
        if self.prompt_box is not None:
            arrays["prompt_box"] = np.array(self.prompt_box)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EncodedImage:
        """Read what `to_arrays` gave. Raises `KeyError` or `ValueError` for anything else."""
        height, width, new_height, new_width, side = map(int, arrays["geometry"])
        geometry = ImageGeometry(
            (height, width),
            (new_height, new_width),
            side,
            bool(arrays["upsample_probabilities"]),
        )
        features, box = from_arrays(arrays), arrays.get("prompt_box")
        return cls(
            geometry,
            {name: HostTensor(array) for name, array in features.items()} or None,
            arrays.get("network_input"),
            None if box is None else tuple(map(float, box)),
        )
