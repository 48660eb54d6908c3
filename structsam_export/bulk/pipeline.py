"""Steps that overlap: a thread or more for each, and short queues between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

_WAIT_SECONDS = 0.1
_END = object()


class Stopped(Exception):
    """Raised by a stage that breaks off, because all work has been stopped."""


@dataclass(frozen=True)
class Stage:
    """A step of the work.

    Args:
        run: one item -> one item; raises only what ends all work.
        threads: how many run it at once; then items may overtake each other.
    """

    run: Callable[[Any], Any]
    threads: int = 1


def pipelined(
    items: Iterable[Any],
    stages: list[Stage],
    ahead: int = 2,
    stop: threading.Event | None = None,
) -> Generator[Any, None, None]:
    """Yield every item after all stages, which run beside each other and beside the caller.

    Args:
        ahead: items that wait between two stages at most, so that memory is bounded.
        stop: is set when all work ends early; a stage that takes long may look at it, and raise
            `Stopped`.

    Raises:
        BaseException: what a stage, or the iteration over `items`, raised first. All threads have
            ended then, and when the caller stops to iterate.
    """
    stop = stop or threading.Event()
    failures: list[BaseException] = []
    queues: list[queue.Queue[Any]] = [queue.Queue(ahead) for _ in range(len(stages) + 1)]

    def put(to: queue.Queue[Any], item: Any) -> None:
        while not stop.is_set():
            try:
                return to.put(item, timeout=_WAIT_SECONDS)
            except queue.Full:
                continue

    def get(source: queue.Queue[Any]) -> Any:
        while not stop.is_set():
            try:
                return source.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                continue
        return _END

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # told to the caller, which raises it
                failures.append(error)
                stop.set()

        return run

    def feed() -> None:
        for item in items:
            put(queues[0], item)
            if stop.is_set():
                return
        for _ in range(stages[0].threads):
            put(queues[0], _END)

    def work_of(index: int, left: list[int], lock: threading.Lock) -> Callable[[], None]:
        followers = stages[index + 1].threads if index + 1 < len(stages) else 1

        def work() -> None:
            while (item := get(queues[index])) is not _END:
                put(queues[index + 1], stages[index].run(item))
            with lock:
                left[0] -= 1
                last = left[0] == 0
            for _ in range(followers if last else 0):
                put(queues[index + 1], _END)

        return work

    threads = [threading.Thread(target=guarded(feed), daemon=True)]
    for index, stage in enumerate(stages):
        work = work_of(index, [stage.threads], threading.Lock())
        threads += [
            threading.Thread(target=guarded(work), daemon=True) for _ in range(stage.threads)
        ]
    try:
        for thread in threads:
            thread.start()
        while (item := get(queues[-1])) is not _END:
            yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
