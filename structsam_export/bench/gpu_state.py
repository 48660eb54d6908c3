"""What moves a GPU's times from run to run: its clocks, its power limit and its temperature."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from structsam_export.machine import query_gpus

#: Field of nvidia-smi -> what it is, its unit, and from which change on it moved.
_FIELDS = {
    "clocks.sm": ("SM clock", "MHz", lambda before, after: abs(after - before) > 0.02 * before),
    "clocks.mem": ("memory clock", "MHz", lambda before, after: after != before),
    "power.limit": ("power limit", "W", lambda before, after: after != before),
    "temperature.gpu": ("temperature", "°C", lambda before, after: abs(after - before) > 5),
}
_ON_A_JETSON = "on a Jetson fix clocks with `sudo jetson_clocks`, and watch `tegrastats`"

State = dict[str, float | None]


def gpu_state() -> State:
    """Ask nvidia-smi about the GPU that CUDA takes first; None for what it does not tell."""
    try:
        gpus = query_gpus("index", "uuid", *_FIELDS)
    except (OSError, subprocess.SubprocessError, ValueError):
        gpus = []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    chosen = [gpu for gpu in gpus if visible in (gpu["index"], gpu["uuid"])] or gpus
    found = chosen[0] if chosen else {}
    return {name: _number(found.get(name, "")) for name in _FIELDS}


def _number(text: str) -> float | None:
    number = re.match(r"[\d.]+", text)  # "[N/A]" has none
    return float(number[0]) if number else None


def state_lines(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how the GPU was before and after each group of rows, and what moved.

    Args:
        states: dicts of `rows` (which group, in words), `before` and `after`.
    """
    lines = []
    for state in states:
        before, after = state["before"], state["after"]
        told, untold = [], []
        for field, (name, unit, moved) in _FIELDS.items():
            first, last = before[field], after[field]
            if first is None or last is None:
                untold.append(name)
            elif first == last:
                told.append(f"{name} {first:g} {unit}")
            else:
                mark = " (moved)" if moved(first, last) else ""
                told.append(f"{name} {first:g} -> {last:g} {unit}{mark}")
        text = f"GPU before -> after {state['rows']}: {', '.join(told) or 'not told'}"
        if untold:
            text += f"; nvidia-smi does not tell {', '.join(untold)}; {_ON_A_JETSON}"
        lines.append(text)
    return lines
