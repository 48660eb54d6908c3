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
        self.seconds_per_call = 1.0  # of late
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    def submit(self, kind: Hashable, work: Any, size: int = 1) -> Future[Any]:
        """Let a job wait.

        Raises:
            Busy: too many wait already.
            Stopping: it has been stopped.
        """
        job = Job(kind, work, size)
        with self._changed:
            if self._stopping:
                raise Stopping
            if len(self._jobs) >= self._waiting:
                raise Busy(self.name, len(self._jobs), len(self._jobs) * self.seconds_per_call)
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def stop(self, timeout: float | None = None) -> None:
        """Do what waits, take nothing more, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return
                jobs = self._take()
            asked = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if asked:
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
                job.future.set_exception(error)
            if not isinstance(error, Exception):
                _log.error("%s ends: %r", self.name, error)
                raise
        else:
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
        self.seconds_per_call = 0.7 * self.seconds_per_call + 0.3 * (time.perf_counter() - start)
