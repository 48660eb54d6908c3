"""The pipeline: all items, a few at a time, and no thread is left behind."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from structsam_export.bulk.pipeline import Stage, Stopped, pipelined


def threads_left(before: int) -> int:
    return threading.active_count() - before


def test_every_item_goes_through_every_stage() -> None:
    before = threading.active_count()
    stages = [Stage(lambda x: x + 1, threads=3), Stage(lambda x: x * 2), Stage(str, threads=2)]
    assert sorted(pipelined(range(50), stages), key=int) == [str(2 * (x + 1)) for x in range(50)]
    assert list(pipelined([], stages)) == [] and not threads_left(before)


def test_single_threads_keep_the_order_and_run_beside_each_other() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(item: Any) -> Any:
        if item == 0:
            return item  # so that the second stage has one while the first has the next
        both.wait()
        return item

    def meet_one_later(item: Any) -> Any:
        if item < 3:
            both.wait()
        return item

    assert list(pipelined(range(4), [Stage(meet), Stage(meet_one_later)])) == [0, 1, 2, 3]


def test_few_items_wait() -> None:
    begun: list[int] = []
    stages = [Stage(lambda x: begun.append(x) or x), Stage(lambda x: x)]
    items = pipelined(range(100), stages, ahead=2)
    next(items)
    time.sleep(0.3)
    assert len(begun) <= 9
    items.close()


def test_a_long_stage_may_break_off_when_nobody_waits_any_more() -> None:
    before, stop, broken_off = threading.active_count(), threading.Event(), threading.Event()

    def endless(item: int) -> int:
        if item:
            assert stop.wait(60), "it was never told"
            broken_off.set()
            raise Stopped
        return item

    items = pipelined(range(3), [Stage(endless)], stop=stop)
    assert next(items) == 0
    items.close()
    assert broken_off.is_set() and not threads_left(before)


@pytest.mark.parametrize("where", [0, 1, "items"])
def test_a_failure_ends_all_and_is_raised(where: Any) -> None:
    before = threading.active_count()

    def fails_at(place: Any) -> Any:
        def run(item: int) -> int:
            if place == where and item == 5:
                raise ZeroDivisionError("five")
            return item

        return run

    def items() -> Any:
        yield from map(fails_at("items"), range(1000))

    with pytest.raises(ZeroDivisionError, match="five"):
        list(pipelined(items(), [Stage(fails_at(0), 2), Stage(fails_at(1))]))
    assert not threads_left(before)
