"""Why a check broke, in one line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from structsam.errors import UserError


def guarded(check: Callable[[], Any]) -> Any:
    """Return what a check finds, or `{"problem": reason}`; never raises because of it."""
    try:
        return check()
    except Exception as error:
        return {"problem": reason_of(error)}


def reason_of(error: Exception) -> str:
    """Say what went wrong; of an unexpected error also its kind."""
    if isinstance(error, subprocess.CalledProcessError):
        told = (error.stderr or error.stdout or "").strip().splitlines()
        return f"{error.cmd[0]} ended with code {error.returncode}{f': {told[-1]}' if told else ''}"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no {error.filename}"
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
