"""One job for all who ask for the same: all get its end, and who leaves takes nobody along."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest

from structsam_export.serve.shared_jobs import SharedJobs


def two() -> tuple[SharedJobs[str], list[Future[str]], Future[str], Future[str]]:
    """Return two who share the only job that began."""
    shared, began = SharedJobs[str](), []

    def begin() -> Future[str]:
        began.append(Future[str]())
        return began[-1]

    return shared, began, shared.join("key", begin), shared.join("key", begin)


def test_all_get_the_result_and_then_another_job_begins() -> None:
    shared, began, first, second = two()
    assert shared.join("other", Future[str]) is not first and len(shared) == 2
    began[0].set_result("done")
    assert (first.result(0), second.result(0), len(began), len(shared)) == ("done", "done", 1, 1)


def test_all_get_the_error() -> None:
    shared, began, first, second = two()
    began[0].set_exception(ValueError("bad"))
    for each in (first, second):
        with pytest.raises(ValueError, match="bad"):
            each.result(0)
    assert not len(shared)


def test_the_job_is_cancelled_when_the_last_one_has_left() -> None:
    shared, began, first, second = two()
    assert first.cancel() and not began[0].cancelled()
    assert second.cancel() and began[0].cancelled() and not len(shared)
    with pytest.raises(CancelledError):
        second.result(0)


def test_who_stays_gets_it() -> None:
    _, began, first, second = two()
    first.cancel()
    began[0].set_result("done")
    assert second.result(0) == "done" and first.cancelled()


def test_what_cannot_begin_is_told_and_forgotten() -> None:
    shared = SharedJobs[str]()

    def refuse() -> Future[str]:
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        shared.join("key", refuse)
    assert not len(shared)
