"""Which Jetson this is, by its own files and programs: L4T, JetPack, power mode."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structsam_export.doctor.reason import guarded
from structsam_export.machine import first_line, run_program

_RELEASE = Path("etc/nv_tegra_release")
_MODEL = Path("proc/device-tree/model")
#: The major number of L4T belongs to one of JetPack; the package says it exactly where it is.
_JETPACK_OF = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7"}


def examine(root: Path = Path("/")) -> dict[str, Any] | None:
    """Return `board`, `l4t`, `jetpack` and `power_mode`, JSON-ready; None on any other machine."""
    if not is_jetson(root):
        return None
    checks: dict[str, Callable[[], Any]] = {
        "board": lambda: first_line(root / _MODEL),
        "l4t": lambda: l4t_release(root),
        "jetpack": lambda: jetpack(root),
        "power_mode": power_mode,
    }
    return {name: guarded(check) for name, check in checks.items()}


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this system was made for a Jetson."""
    return (root / _RELEASE).exists() or "jetson" in (first_line(root / _MODEL) or "").lower()


def l4t_release(root: Path = Path("/")) -> str:
    """Return NVIDIA's release of Linux, such as `36.4.0`.

    Raises:
        ValueError: the file says it in another way than those known.
        OSError: there is no such file.
    """
    text = (root / _RELEASE).read_text(encoding="utf-8", errors="replace")
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found is None:
        raise ValueError(f"/{_RELEASE} begins with {text[:60]!r}, and no release is in it")
    return f"{found[1]}.{found[2]}"


def jetpack(root: Path = Path("/")) -> str:
    """Return JetPack's version, by its package or else by the release of Linux."""
    try:
        package = run_program(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
    except (OSError, subprocess.SubprocessError):  # a board that was only flashed has none
        package = ""
    if package:
        return package
    release = l4t_release(root)
    major = _JETPACK_OF.get(release.partition(".")[0])
    known = f"{major}.x" if major else "unknown to this version"
    return f"{known} (by L4T {release}; the package nvidia-jetpack is not installed)"


def power_mode() -> str:
    """Return the name and the number of the power mode, such as `MAXN (0)`.

    Raises:
        ValueError: `nvpmodel -q` says it in another way than those known.
        OSError, subprocess.SubprocessError: it is not there, or failed.
    """
    text = run_program(["nvpmodel", "-q"])
    name = re.search(r"NV Power Mode: *(\S.*)", text)
    if name is None:
        raise ValueError(f"nvpmodel -q says {' '.join(text.split())!r}, and no mode is in it")
    number = re.search(r"^\d+$", text[name.end() :], re.MULTILINE)
    return f"{name[1].strip()} ({number[0]})" if number else name[1].strip()
