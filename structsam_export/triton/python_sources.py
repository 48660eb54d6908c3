"""Which of our own files a Python model needs, to be copied into the repository beside it.

Copies of the files that `predict` runs, and not a second implementation. What a function imports
when it is called is left out: that is for exporting, and for other runtimes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("structsam", "structsam_export")


@cache
def python_sources(module: str) -> Mapping[str, Path]:
    """Return what importing a module of ours loads: its place below the packages -> its file."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        parts = waiting.pop().split(".")
        for count in range(1, len(parts) + 1):
            file = _file(parts[:count])
            if file is None:
                break
            place = file.relative_to(_ROOT).as_posix()
            if place not in found:
                found[place] = file
                waiting += _imports(file)
    return dict(sorted(found.items()))


def _file(parts: list[str]) -> Path | None:
    path = _ROOT.joinpath(*parts)
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if file.is_file():
            return file
    return None


def _imports(file: Path) -> Iterator[str]:
    """Yield the names of our packages that a file imports at its top."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in _PACKAGES)
