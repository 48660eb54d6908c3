"""Feature maps: the outputs of an encoder that its decoder takes, by name, in the graph's order.

SAM has one, `image_embeddings`. Files hold it as `embedding`, and any other as `feature.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from structsam_export.bundle.manifest import IMAGE_EMBEDDINGS

Features = dict[str, np.ndarray]
_EMBEDDING, _PREFIX = "embedding", "feature."


def array_name(name: str) -> str:
    """Return what the array of a feature map is called in a file."""
    return _EMBEDDING if name == IMAGE_EMBEDDINGS else _PREFIX + name


def to_arrays(features: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the arrays of a file; `from_arrays` reads them back."""
    return {array_name(name): array for name, array in features.items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Features:
    """Read the feature maps of a file, which may hold other arrays; empty where it has none."""
    found = {IMAGE_EMBEDDINGS: arrays[_EMBEDDING]} if _EMBEDDING in arrays else {}
    more = [name for name in arrays if name.startswith(_PREFIX)]
    return found | {name.removeprefix(_PREFIX): arrays[name] for name in more}
