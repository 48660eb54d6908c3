"""Checks that a folder has the layout of a set; if not, says what was expected where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from structsam.errors import UserError
from structsam.evaluation.datasets.base import Dataset

#: Where a better root is looked for: folders above, and levels and folders below.
_LEVELS_UP, _LEVELS_DOWN, _MOST_BELOW = 5, 3, 300


@dataclass(frozen=True)
class Layout:
    """One way in which a set may lie under its root.

    Args:
        needs: paths that must exist under the root; a "/" at the end means a folder, a "*" stands
            for any one name.
        root_name: regular expression for the root's own name, where the paths alone would fit
            other sets as well; "" for any name.
    """

    needs: tuple[str, ...]
    root_name: str = ""

    def missing(self, root: Path) -> list[str]:
        """Name what `root` lacks; empty where it fits."""
        own = root.resolve().name
        if self.root_name and not re.fullmatch(self.root_name, own, re.IGNORECASE):
            return list(self.needs)
        return [need for need in self.needs if not _exists(root, need)]


def _exists(root: Path, need: str) -> bool:
    found = root.glob(need.rstrip("/")) if "*" in need else [root / need]
    try:
        return any(path.is_dir() if need.endswith("/") else path.is_file() for path in found)
    except OSError:
        return False


def require_layout(dataset: type[Dataset], root: Path, layouts: Sequence[Layout]) -> Layout:
    """Return the first layout that `root` has.

    Raises:
        UserError: it has none; the message holds `dataset.layout`, what is missing, and a folder
            nearby that fits, where there is one.
    """
    for layout in layouts:
        if not layout.missing(root):
            return layout
    if root.is_dir():
        nearest = min(layouts, key=lambda layout: len(layout.missing(root))).missing(root)
        reason = f"it has no {' and no '.join(nearest)}"
    else:
        reason = "it is a file; unpack it" if root.exists() else "there is no such folder"
    better = next(_fitting(root, layouts), None)
    advice = f"\n{better} fits: use that." if better else ""
    expected = "".join(f"\n  {line}" for line in dataset.layout.splitlines())
    raise UserError(
        f"{root} is not the root of the dataset {dataset.name!r}: {reason}. "
        f"Expected there:{expected}{advice}"
    )


def _fitting(root: Path, layouts: Sequence[Layout]) -> Iterator[Path]:
    """Folders above `root` that fit, then those below it, level by level and by name."""
    # a "*" above would find the neighbours of `root`, which are another's
    exact = [layout for layout in layouts if not any("*" in need for need in layout.needs)]
    above = list(root.absolute().parents)[:_LEVELS_UP]
    below = islice(_below(root), _MOST_BELOW) if root.is_dir() else iter(())
    for folders, fits in ((above, exact), (below, layouts)):
        for folder in folders:
            if any(not layout.missing(folder) for layout in fits):
                yield folder


def _below(root: Path) -> Iterator[Path]:
    level = [root]
    for _ in range(_LEVELS_DOWN):
        level = [child for folder in level for child in subfolders(folder)]
        yield from level


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder` that are not hidden, by name; none where it cannot be read."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
