"""Limits of the server, with defaults for one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from structsam.errors import UserError

_MB = 1 << 20


@dataclass(frozen=True)
class ServeSettings:
    """What a server allows and keeps.

    Args:
        cache_mb: memory for encoded images, in MiB; SAM's take 4 each.
        spill: folder for images that must leave memory.
        embeddings: folder of embeddings that `segment` saved, looked up before a photo is encoded.
        spill_mb: of all files there, in MiB.
        queue: photos that may wait for the encoder, and requests that may wait for the decoder
            (four times as many); beyond it a request is told to come again.
        max_body_mb: of a request, in MiB.
        max_pixels: of a photo.
        max_prompts: points or boxes of a request.
    """

    cache_mb: int = 1024
    spill: Path | None = None
    embeddings: Path | None = None
    spill_mb: int = 8192
    queue: int = 16
    max_body_mb: int = 64
    max_pixels: int = 100_000_000
    max_prompts: int = 1024

    def __post_init__(self) -> None:
        for name in ("cache_mb", "spill_mb", "queue", "max_body_mb", "max_pixels", "max_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range. Use 1 or more")

    @property
    def cache_bytes(self) -> int:
        """Memory for encoded images."""
        return self.cache_mb * _MB

    @property
    def spill_bytes(self) -> int:
        """Of all files on disk."""
        return self.spill_mb * _MB

    @property
    def max_body_bytes(self) -> int:
        """Of a request."""
        return self.max_body_mb * _MB
