"""More threads than cores make everything slower: every command that takes them says so."""

from __future__ import annotations

import pytest
import typer

from structsam_export import machine
from structsam_export.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WITH_THREADS = sorted(
    name for name, command in COMMANDS.items() if any(p.name == "threads" for p in command.params)
)


def test_who_takes_threads() -> None:
    assert set(WITH_THREADS) >= {"bench", "check", "evaluate", "predict"}


@pytest.mark.parametrize("name", WITH_THREADS)
@pytest.mark.parametrize(("threads", "noted"), [(64, True), (3, True), (2, False), (None, False)])
def test_a_note_above_the_usable_cores(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    threads: int | None,
    noted: bool,
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    command = COMMANDS[name]
    option = next(param for param in command.params if param.name == "threads")
    with command.make_context(name, [], resilient_parsing=True) as context:
        context.resilient_parsing = False
        assert option.process_value(context, threads) == threads
    told = capsys.readouterr()
    assert (f"note: {threads} threads on 2 usable cores" in told.err) is noted
    assert ("--threads 2" in told.err) is noted and told.out == ""


def test_a_machine_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: None)
    option = next(param for param in COMMANDS["check"].params if param.name == "threads")
    with COMMANDS["check"].make_context("check", [], resilient_parsing=True) as context:
        assert option.process_value(context, 64) == 64
