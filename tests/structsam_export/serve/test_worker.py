"""The one thread that owns a predictor: order, joined jobs, a bound, and an orderly end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from structsam_export.serve.refusals import Busy, Stopping
from structsam_export.serve.worker import Worker


class Held:
    """Work that waits until it is let go, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.go = threading.Event()
        self.began = threading.Event()

    def __call__(self, works: Sequence[Any]) -> list[Any]:
        self.began.set()
        assert self.go.wait(20)
        self.calls.append(list(works))
        if "bad" in works:
            raise ValueError("bad work")
        return [f"done {work}" for work in works]


def blocked(waiting: int = 8, most: int = 4) -> tuple[Worker, Held, Any]:
    """Return a worker that is busy with the job `first`."""
    held = Held()
    worker = Worker("jobs", held, waiting, most)
    first = worker.submit(None, "first")
    assert held.began.wait(20)
    return worker, held, first


def test_jobs_of_one_kind_share_a_call_up_to_its_size() -> None:
    worker, held, first = blocked(most=4)
    futures = [
        worker.submit("a", "a1", 2),
        worker.submit("b", "b1", 1),
        worker.submit("a", "a2", 2),
        worker.submit("a", "a3", 1),
    ]
    held.go.set()
    assert first.result(20) == "done first"
    assert [f.result(20) for f in futures] == ["done a1", "done b1", "done a2", "done a3"]
    assert held.calls == [["first"], ["a1", "a2"], ["b1"], ["a3"]]
    worker.stop(20)


def test_jobs_without_a_kind_are_done_alone() -> None:
    worker, held, _ = blocked()
    futures = [worker.submit(None, number) for number in range(3)]
    held.go.set()
    for future in futures:
        future.result(20)
    assert held.calls == [["first"], [0], [1], [2]]
    worker.stop(20)


def test_beyond_the_bound_it_is_busy_and_says_when_to_come_again() -> None:
    worker, held, first = blocked(waiting=2)
    kept = [worker.submit(None, number) for number in range(2)]
    assert worker.waiting == 2
    with pytest.raises(Busy, match="2 jobs are waiting already") as caught:
        worker.submit(None, 3)
    assert caught.value.status == 429
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    held.go.set()
    assert [f.result(20) for f in kept] == ["done 0", "done 1"]
    assert first.done()
    worker.stop(20)


def test_an_error_reaches_whom_it_belongs_to_and_the_thread_goes_on() -> None:
    worker, held, _ = blocked()
    bad = worker.submit("x", "bad")
    good = worker.submit("y", "good")
    held.go.set()
    with pytest.raises(ValueError, match="bad work"):
        bad.result(20)
    assert good.result(20) == "done good"
    worker.stop(20)


def test_before_the_first_call_has_ended_nobody_knows_when_to_come_again() -> None:
    worker, held, _ = blocked(waiting=1)
    waits = worker.submit(None, 1)
    with pytest.raises(Busy) as caught:
        worker.require_room()
    assert caught.value.retry_after == 5
    worker._seconds = 40.0  # a call has ended
    with pytest.raises(Busy) as caught:
        worker.require_room()
    assert caught.value.retry_after == 40
    held.go.set()
    waits.result(20)
    worker.stop(20)


def test_stopped_it_ends_what_runs_refuses_what_waits_and_takes_nothing_more() -> None:
    worker, held, first = blocked()
    last = worker.submit(None, "last")
    assert not worker.stop(0)  # the first still runs
    with pytest.raises(Stopping):
        last.result(0)
    with pytest.raises(Stopping):
        worker.submit(None, "too late")
    held.go.set()
    assert worker.stop(20) and first.result(0) == "done first"
    assert held.calls == [["first"]]


def test_what_nobody_wants_any_more_leaves_the_queue() -> None:
    worker, held, first = blocked(waiting=2)
    dropped, kept = worker.submit("a", "dropped"), worker.submit("a", "kept")
    assert dropped.cancel() and worker.waiting == 1
    later = worker.submit("a", "later")  # there is room again
    assert first.cancel()  # it runs on, and its result is dropped
    held.go.set()
    assert (kept.result(20), later.result(20)) == ("done kept", "done later")
    assert held.calls == [["first"], ["kept", "later"]]
    worker.stop(20)
