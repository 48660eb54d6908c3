"""Checks that load drivers and runtimes, each in a process that may die of it.

Libraries that do not fit crash the process that loads them, or wait for ever. So every such check
runs as `python -m structsam_export.doctor.process SUBJECT`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from structsam_export.doctor import gpu
from structsam_export.doctor.reason import guarded
from structsam_export.doctor.runtimes import try_runtime
from structsam_export.last_words import last_words

CUDA = "cuda"
#: The first torch.compile on a machine takes half a minute.
PATIENCE = 180  # seconds


def ask(subject: str) -> dict[str, Any]:
    """Return what a check found, or `{"problem": reason}`.

    Args:
        subject: `CUDA`, or the name of a backend; see `try_runtime`.
    """
    return guarded(lambda: gpu.cuda() if subject == CUDA else try_runtime(subject))


def ask_in_process(subject: str) -> dict[str, Any]:
    """Return what `ask` returns, from a process of its own; how that died is a problem, too."""
    command = [sys.executable, "-m", "structsam_export.doctor.process", subject]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"it took more than {PATIENCE} s"}
    if done.returncode:
        return {"problem": last_words("the process that tried it", done.returncode, done.stderr)}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(subject: str) -> None:
    """Print the JSON of `ask`, and nothing else, on standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    with answers:
        json.dump(ask(subject), answers)


if __name__ == "__main__":
    main(sys.argv[1])
