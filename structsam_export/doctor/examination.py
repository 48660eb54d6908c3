"""Everything that a bug report should say of a machine; no check can break another."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from structsam_export.doctor import gpu, jetson
from structsam_export.doctor.process import CUDA, ask_in_process
from structsam_export.doctor.reason import guarded
from structsam_export.machine import free_memory_gib, hardware, tool_versions
from structsam_export.runtimes import BACKENDS
from structsam_export.runtimes.auto_preference import auto_order

Facts = dict[str, Any]
Say = Callable[[str], None]


def examine(
    ask: Callable[[str], Facts] = ask_in_process,
    say: Say = lambda text: None,
    root: Path = Path("/"),
) -> Facts:
    """Look at versions, machine, GPU, Jetson and every runtime.

    Args:
        ask: as `doctor.process.ask`.
        root: where a Jetson's files are looked for.

    Returns:
        JSON-ready; a check that broke is `{"problem": reason}`. `works` lists the runtimes that do,
        `auto` is what runs a bundle without engines where no backend is named.
    """
    runtimes = {}
    for name in BACKENDS:
        say(f"trying {name}")
        runtimes[name] = _tried(ask(name))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": guarded(tool_versions),
        "machine": guarded(_machine),
        "nvidia_smi": guarded(gpu.nvidia_smi),
        "cuda": ask(CUDA),
        "jetson": guarded(lambda: jetson.examine(root)),
        "runtimes": runtimes,
        "works": (works := [name for name, facts in runtimes.items() if facts["works"]]),
        "auto": next((name for name in auto_order(BACKENDS) if _runs_alone(name, works)), None),
    }


def _runs_alone(name: str, works: list[str]) -> bool:
    return name in works and not BACKENDS[name].needs_engine


def _machine() -> Facts:
    told = guarded(lambda: platform.freedesktop_os_release()["PRETTY_NAME"])
    distribution = told if isinstance(told, str) else None  # no Linux, or one without the file
    return {**hardware(), "distribution": distribution, "free_memory_gib": free_memory_gib()}


def _tried(facts: Facts) -> Facts:
    """A runtime whose check broke does not work, for that reason."""
    if "problem" in facts:
        return {"works": False, "reason": facts["problem"], "self_test": "failed"}
    return facts
