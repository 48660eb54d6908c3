"""How signals end a command: SIGTERM as Ctrl-C, tidied up; the exit code tells which it was."""

from __future__ import annotations

import signal
from types import FrameType

_ended_by = signal.SIGINT


def catch_sigterm() -> None:
    """Let SIGTERM interrupt the command as Ctrl-C does, unless something else is done at it."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def leave_sigterm() -> None:
    """Take `catch_sigterm` back, for a command with an end of its own."""
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ignore_both() -> None:
    """From now on the exit code stands."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def name_and_code() -> tuple[str, int]:
    """Return what the user reads of the signal that ended the command, and the exit code."""
    name = "terminated" if _ended_by is signal.SIGTERM else "interrupted"
    return name, 128 + _ended_by


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _ended_by
    _ended_by = signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing cuts the tidying short
    raise KeyboardInterrupt
