"""Limits of the server, with defaults for one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from structsam.errors import UserError

_MB = 1 << 20
#: Points or boxes that a request may ever have, whatever the settings.
MOST_PROMPTS = 10_000


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
        max_body_mb: of a photo's request, in MiB.
        max_pixels: of a photo.
        max_prompts: points or boxes of a request, up to `MOST_PROMPTS`; with three masks of each,
            a third of it.
        max_answer_pixels: of all masks of an answer together. A pixel of `logits` counts as 16.
    """

    cache_mb: int = 1024
    spill: Path | None = None
    embeddings: Path | None = None
    spill_mb: int = 8192
    queue: int = 16
    max_body_mb: int = 64
    max_pixels: int = 100_000_000
    max_prompts: int = 1024
    max_answer_pixels: int = 500_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} {value} is out of range. Use 1 or more")
        if self.max_prompts > MOST_PROMPTS:
            raise UserError(
                f"max_prompts {self.max_prompts} is out of range. Use {MOST_PROMPTS} or fewer"
            )

    @property
    def prompts_waiting(self) -> int:
        """Requests that may wait for the decoder, and as many again for their answers."""
        return 4 * self.queue

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
