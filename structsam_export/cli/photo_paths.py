"""Photos as they are typed: `~` is the home folder here, and a letter of names in listings."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TypeVar

from structsam.errors import UserError

_Typed = TypeVar("_Typed", str, Path)


def from_home(typed: _Typed | None) -> _Typed | None:
    """Put the home folder in the place of `~`; a callback of options.

    A file, or a pattern, that begins with `~` and is nobody's home is taken as it stands.

    Raises:
        UserError: there is no such user, and no such file.
    """
    if typed is None:
        return None
    path = Path(typed)
    try:
        found = path.expanduser()
    except RuntimeError:
        if not (path.exists() or glob.has_magic(str(path))):
            raise UserError(
                f"{path} is no file, and its first part names no user whose home it could be. "
                "Check the path"
            ) from None
        found = path.absolute()
    return type(typed)(found)


def all_from_home(typed: list[Path] | None) -> list[Path] | None:
    """Do what `from_home` does with every path of an option that is repeated."""
    return None if typed is None else [path for path in map(from_home, typed) if path]
