"""What the encoder made of an image on disk, FP16: computed once, used for every later prompt."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.features import Features, array_name, from_arrays, to_arrays
from structsam_export.bundle.folder import Bundle

_ID_DIGITS = 32


def photo_id(data: bytes) -> str:
    """Return what photos are known by: the start of the SHA-256 of their file's bytes."""
    return photo_id_of(hashlib.sha256(data).hexdigest())


def photo_id_of(sha256: str) -> str:
    """Return the `photo_id` of a file whose hex SHA-256 is known."""
    return sha256[:_ID_DIGITS]


def to_half(features: Features, advice: str = "Leave out `save_embeddings=True`") -> Features:
    """Return feature maps as FP16.

    Args:
        advice: what to do where it does not fit.

    Raises:
        UserError: a value is beyond FP16.
    """
    with np.errstate(over="ignore"):
        half = {name: array.astype(np.float16) for name, array in features.items()}
    for name, array in half.items():
        if not np.isfinite(array).all():
            most = np.abs(features[name]).max()
            raise UserError(f"{name} has values beyond FP16, up to {most:g}. {advice}")
    return half


def save_embedding(
    file: Path, bundle: Bundle, half: Features, original_size: tuple[int, int], photo: str
) -> None:
    """Write feature maps float16 [1, C, h, w] of a photo of (H, W) pixels, atomically.

    Args:
        photo: its `photo_id`.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic.staged_file(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            **to_arrays(half),
            original_size=np.array(original_size),
            encoder=np.array(_encoder_of(bundle)),
            photo=np.array(photo),
        )


def load_embedding(file: Path, bundle: Bundle) -> tuple[Features, tuple[int, int]]:
    """Return the feature maps, float32 [1, C, h, w], and the photo's (H, W).

    Raises:
        UserError: missing, damaged, or of another encoder than this bundle's.
    """
    names = (array_name(spec.name) for spec in bundle.features)
    found = _read(file, bundle, (*names, "original_size"))
    try:
        height, width = map(int, found["original_size"])
        features = {name: array.astype(np.float32) for name, array in from_arrays(found).items()}
    except (ValueError, TypeError) as error:
        raise _damaged(file, error) from None
    return features, (height, width)


def photo_of(file: Path, bundle: Bundle) -> str:
    """Return the `photo_id` of the photo that an embedding is of, without reading all of it.

    Raises:
        UserError: as `load_embedding`, or the file is of an earlier version and does not say.
    """
    return str(_read(file, bundle, ("photo",))["photo"])


def _read(file: Path, bundle: Bundle, names: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["encoder"]) != _encoder_of(bundle):
                raise UserError(
                    f"{file} was made by another encoder than that of {bundle.path}: its masks "
                    "would be wrong. Make it again with this bundle"
                )
            if "photo" in names and "photo" not in arrays:
                raise UserError(
                    f"{file} does not say which photo it is of: an earlier version made it. Make "
                    "it again with `structsam-export segment`"
                )
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        raise UserError(
            f"no embedding at {file}. Make it with `structsam-export segment`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{file} is no embedding, or damaged ({reason}). Make it again")


def _encoder_of(bundle: Bundle) -> str:
    """Return what tells encoders apart: the digest of its ONNX file."""
    record = bundle.files.get(bundle.part("encoder").file)
    return record.sha256 if record else bundle.name
