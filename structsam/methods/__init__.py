"""METHODS: every token merging method. A new one is one file here and one line in the dict."""

from __future__ import annotations

from structsam.errors import UserError
from structsam.methods.base import MergeMethod
from structsam.methods.structsam import StructSAM

METHODS: dict[str, type[MergeMethod]] = {
    "structsam": StructSAM,
}

__all__ = ["METHODS", "MergeMethod", "find_method"]


def find_method(name: str) -> type[MergeMethod]:
    """Return the method of that name.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {name!r}. Choose one of: {', '.join(METHODS)}")
    return METHODS[name]
