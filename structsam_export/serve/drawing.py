"""Makes answers of what was found, a few at a time: masks of large photos take time and memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from structsam_export.serve.refusals import Busy, Gone

T = TypeVar("T")
_MOST_THREADS = 8  # of the 40 that all of the server has


class Drawing:
    """Runs functions in threads, as many at once as there are CPUs.

    Args:
        most: how many may wait.
    """

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._places = asyncio.Semaphore(self._threads)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return max(0, self._inside - self._threads)

    def require_room(self) -> None:
        """Raise `Busy` where too many wait already: ask before the work that comes first."""
        if self.waiting >= self._most:
            raise Busy("answers", self.waiting, None)

    async def run(self, request: Request, make: Callable[[], T]) -> T:
        """Return what the function returns. Raises `Gone` where the client left before it began."""
        self._inside += 1
        try:
            async with self._places:
                if await request.is_disconnected():
                    raise Gone
                return await run_in_threadpool(make)
        finally:
            self._inside -= 1
