"""Where the time of one photo went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = ("load", "read", "preprocess", "encode", "decode", "upscale", "write")


class StepClock:
    """Milliseconds of one photo's steps, and of all of it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.steps = dict.fromkeys(_STEPS, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step."""
        start = time.perf_counter()
        yield
        self.steps[name] += (time.perf_counter() - start) * 1e3

    def milliseconds(self) -> dict[str, float]:
        """Return every step and the total until now, ready for JSON."""
        total = (time.perf_counter() - self._start) * 1e3
        return {name: round(ms, 3) for name, ms in (self.steps | {"total": total}).items()}
