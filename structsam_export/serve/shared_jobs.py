"""One job for all who ask for the same thing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class _Shared(Generic[T]):
    job: Future[T]
    waiting: list[Future[T]] = field(default_factory=list)


class SharedJobs(Generic[T]):
    """Jobs in work, by what they are for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, _Shared[T]] = {}
        self._lock = threading.RLock()  # what cancels a job is told of it at once

    def __len__(self) -> int:
        return len(self._jobs)

    def join(self, key: Hashable, submit: Callable[[], Future[T]]) -> Future[T]:
        """Return a future of one's own; the job is cancelled once all of them are.

        Args:
            key: of the result.
            submit: begins the job where none is in work; what it raises is raised here.
        """
        own: Future[T] = Future()
        with self._lock:
            shared = self._jobs.get(key)
            begins = shared is None
            if shared is None:
                shared = self._jobs[key] = _Shared(submit())
            shared.waiting.append(own)
        own.add_done_callback(lambda own: self._leave(key, shared, own))
        if begins:
            shared.job.add_done_callback(lambda _: self._finish(key, shared))
        return own

    def _leave(self, key: Hashable, shared: _Shared[T], own: Future[T]) -> None:
        with self._lock:
            if own.cancelled() and own in shared.waiting:
                shared.waiting.remove(own)
                if not shared.waiting:
                    self._forget(key, shared)
                    shared.job.cancel()

    def _finish(self, key: Hashable, shared: _Shared[T]) -> None:
        with self._lock:
            self._forget(key, shared)
            waiting, shared.waiting = shared.waiting, []
        for own in waiting:
            if not own.set_running_or_notify_cancel():
                continue
            if error := shared.job.exception():
                own.set_exception(error)
            else:
                own.set_result(shared.job.result())

    def _forget(self, key: Hashable, shared: _Shared[T]) -> None:
        if self._jobs.get(key) is shared:
            del self._jobs[key]
