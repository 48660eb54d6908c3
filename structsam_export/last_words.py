"""How a process of ours ended, in one line."""

from __future__ import annotations


def last_words(process: str, code: int, errors: str) -> str:
    """Say how `process` ended.

    Args:
        code: its exit code; a negative one is the signal that killed it.
        errors: what it wrote to standard error; its last line is told.
    """
    lines = errors.strip().splitlines()
    told = f": {lines[-1].strip()}" if lines else ""
    hint = " (killed, perhaps for lack of memory)" if code in (-9, 137) else ""
    return f"{process} ended with code {code}{hint}{told}"
