"""One thread that owns a predictor: jobs wait in a bounded queue, and equal kinds may be joined."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from structsam_export.serve.refusals import Busy, Stopping

_log = logging.getLogger("structsam_export")


@dataclass(eq=False)
class Job:
    """What waits for the worker.

    Args:
        kind: jobs of the same kind may be done together; None is done alone.
        work: its input.
        size: how much of a call it takes.
    """

    kind: Hashable
    work: Any
    size: int = 1
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """Runs jobs one call at a time, in order of arrival; jobs of one kind share a call.

    Args:
        name: of what it does, for people.
        run: given the jobs of one call, all of one kind, returns a result for each.
        waiting: how many jobs may wait.
        most: the size that one call takes.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        waiting: int,
        most: int = 1,
    ) -> None:
        self.name, self._run, self._waiting, self._most = name, run, waiting, most
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds: float | None = None  # that a call takes of late
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    def require_room(self) -> None:
        """Say whether a job may wait.

        Raises:
            Busy: too many wait already.
            Stopping: it has been stopped.
        """
        with self._changed:
            if self._stopping:
                raise Stopping
            waiting, seconds = len(self._jobs), self._seconds
        if waiting >= self._waiting:
            raise Busy(self.name, waiting, None if seconds is None else waiting * seconds)

    def submit(self, kind: Hashable, work: Any, size: int = 1) -> Future[Any]:
        """Let a job wait. Raises what `require_room` raises.

        Returns:
            A future that can be cancelled at any time: a job that waits leaves the queue, the
            result of one that runs is dropped.
        """
        job = Job(kind, work, size)
        with self._changed:
            self.require_room()
            self._jobs.append(job)
            self._changed.notify()
        job.future.add_done_callback(self._leave)
        return job.future

    def refuse_waiting(self) -> None:
        """Take nothing more, and refuse what waits: their futures raise `Stopping`."""
        with self._changed:
            self._stopping = True
            refused = [*self._jobs]
            self._jobs.clear()
            self._changed.notify()
        for job in refused:
            _end(job, error=Stopping())

    def stop(self, timeout: float | None = None) -> bool:
        """Refuse what waits, and end after the call that runs; return whether it has ended."""
        self.refuse_waiting()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _leave(self, future: Future[Any]) -> None:
        """Take a cancelled job out; a future that knew its job would keep its image alive."""
        with self._changed:
            for job in [job for job in self._jobs if job.future is future]:
                self._jobs.remove(job)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return
                jobs = self._take()
            if asked := [job for job in jobs if not job.future.cancelled()]:
                self._do(asked)

    def _take(self) -> list[Job]:
        """Take the oldest job, and what may join it."""
        jobs = [self._jobs.popleft()]
        size = jobs[0].size
        if jobs[0].kind is not None:
            for job in list(self._jobs):
                if job.kind == jobs[0].kind and size + job.size <= self._most:
                    self._jobs.remove(job)
                    jobs.append(job)
                    size += job.size
        return jobs

    def _do(self, jobs: Sequence[Job]) -> None:
        start = time.perf_counter()
        try:
            results = self._run([job.work for job in jobs])
        except BaseException as error:
            for job in jobs:
                _end(job, error=error)
            if not isinstance(error, Exception):
                _log.error("%s ends: %r", self.name, error)
                raise
        else:
            for job, result in zip(jobs, results, strict=True):
                _end(job, result)
        spent = time.perf_counter() - start
        self._seconds = spent if self._seconds is None else 0.7 * self._seconds + 0.3 * spent


def _end(job: Job, result: Any = None, error: BaseException | None = None) -> None:
    """Give a job its end, unless it was cancelled."""
    if not job.future.set_running_or_notify_cancel():
        return
    if error is None:
        job.future.set_result(result)
    else:
        job.future.set_exception(error)
