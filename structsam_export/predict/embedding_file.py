"""An image's embedding on disk, FP16: computed once, used for every later prompt."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle


def to_half(embedding: np.ndarray, advice: str = "Leave out `save_embeddings=True`") -> np.ndarray:
    """Return an embedding as FP16.

    Args:
        advice: what to do where it does not fit.

    Raises:
        UserError: a value is beyond FP16.
    """
    with np.errstate(over="ignore"):
        half = embedding.astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(
            f"the embedding has values beyond FP16, up to {np.abs(embedding).max():g}. {advice}"
        )
    return half


def save_embedding(
    file: Path, bundle: Bundle, half: np.ndarray, original_size: tuple[int, int]
) -> None:
    """Write an embedding float16 [1, C, h, w] of a photo of (H, W) pixels, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic.staged_file(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            embedding=half,
            original_size=np.array(original_size),
            encoder=np.array(_encoder_of(bundle)),
        )


def load_embedding(file: Path, bundle: Bundle) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the embedding, float32 [1, C, h, w], and the photo's (H, W).

    Raises:
        UserError: missing, damaged, or of another encoder than this bundle's.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            embedding, size, encoder = (
                found[name] for name in ("embedding", "original_size", "encoder")
            )
            height, width = map(int, size)
    except FileNotFoundError:
        raise UserError(
            f"no embedding at {file}. Make it with `structsam-export segment`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} is no embedding, or damaged ({reason}). Make it again") from None
    if str(encoder) != _encoder_of(bundle):
        raise UserError(
            f"{file} was made by another encoder than that of {bundle.path}: its masks would be "
            "wrong. Make it again with this bundle"
        )
    return embedding.astype(np.float32), (height, width)


def _encoder_of(bundle: Bundle) -> str:
    """Return what tells encoders apart: the digest of its ONNX file."""
    record = bundle.files.get(bundle.part("encoder").file)
    return record.sha256 if record else bundle.name
