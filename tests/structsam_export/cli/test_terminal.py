"""What a log shows of long work, and a bundle's table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from structsam_export.bundle.folder import Bundle
from structsam_export.cli import terminal as module
from structsam_export.cli.terminal import Terminal, bundle_table


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal whose error stream is a file, in which every step takes ten seconds."""
    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))
    terminal = Terminal()
    terminal.err = Console(file=io.StringIO(), width=200)
    return terminal


def lines(terminal: Terminal) -> list[str]:
    assert isinstance(terminal.err.file, io.StringIO)
    return [line.strip() for line in terminal.err.file.getvalue().splitlines() if line.strip()]


def test_a_log_tells_every_tenth_with_the_time_that_is_left(log: Terminal) -> None:
    for done in range(31):
        log.counted("measuring", done, 30)
    told = lines(log)
    assert told[0].startswith("measuring: 3 of 30") and told[0].endswith(" left")
    assert len(told) == 10 and told[-1] == "measuring: 30 done"


def test_resumed_work_starts_from_what_is_done(log: Terminal) -> None:
    log.counted("measuring", 20, 30)
    log.counted("measuring", 21, 30)
    first, second = lines(log)
    assert first == "measuring: 20 of 30"  # nothing is known yet
    assert second == "measuring: 21 of 30, 90 s left" or second.endswith("2 min left")


def test_a_rate_is_told_where_it_is_asked_for(log: Terminal) -> None:
    for done in range(0, 41, 4):
        log.counted("photos", done, 40, with_rate=True)
    assert all(" a second, " in line for line in lines(log)[:-1])
    rates = [float(line.split(", ")[1].split()[0]) for line in lines(log)[:-1]]
    assert all(0.1 < rate <= 0.4 for rate in rates)


def test_blocks_of_different_sizes_are_named(own_bundle: Bundle) -> None:
    def rows() -> list[str]:
        console = Console(file=io.StringIO(), width=200)
        console.print(bundle_table(own_bundle))
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert any("tokens, 2 window blocks" in row and "196 -> 97 " in row for row in rows())
    own_bundle.manifest["merging"]["blocks"][2]["slots"] = 49
    assert any("196 -> 49 in 2; 196 -> 97 in 0" in row for row in rows())
