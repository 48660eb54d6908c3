"""What a search has measured, a line each, so that one that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle import atomic

#: What was asked, and what was measured.
ASKED, MEASURED = "tune.json", "measured.jsonl"


class Record:
    """Results by name. What lies in the folder from a search that was stopped is used again.

    Args:
        folder: made this search's own; held by the caller (`bundle.alone`).
        asked: JSON-ready, all that results depend on.

    Raises:
        UserError: the folder holds another search, or something else.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        require_own(folder, asked)
        if not (folder / ASKED).exists():
            atomic.write_text(folder / ASKED, json.dumps(asked, indent=1) + "\n")
        self._file = folder / MEASURED
        self._known = _whole_lines(self._file)
        self.reused = len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured under that name, measuring and keeping it where it was not."""
        if name not in self._known:
            self.keep(name, measure())
        return self._known[name]

    def keep(self, name: str, value: Any) -> None:
        """Add one result, JSON-ready."""
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"name": name, "value": value}) + "\n")
        self._known[name] = value

    def named(self, start: str) -> dict[str, Any]:
        """Return all results whose name starts so."""
        return {name: value for name, value in self._known.items() if name.startswith(start)}


def require_own(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that this search may not write into; makes nothing.

    Raises:
        UserError: it holds another search, or something else.
    """
    path = folder / ASKED
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Choose another `out=`") from None
        if found != json.loads(json.dumps(asked)):
            raise UserError(
                f"{folder} holds a search with other photos, weights, levers or backend. Choose "
                "another `out=`, or remove that folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(_visible(folder))):
        raise UserError(f"{folder} exists and is no search. Choose another `out=`, or remove it")


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what is there beside locks and leftovers of interrupted writing."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _whole_lines(file: Path) -> dict[str, Any]:
    """Read the results; what an interruption left of the last line is cut off."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        atomic.write_text(file, whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["name"]: line["value"] for line in lines}
