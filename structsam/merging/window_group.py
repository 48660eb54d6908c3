"""Windows of a block that merge equally much; known before any tensor is."""

from __future__ import annotations

from dataclasses import dataclass

from structsam.methods.base import MergeMethod


@dataclass(frozen=True)
class WindowGroup:
    """`windows` maps of every image that `method` merges, each by itself."""

    method: MergeMethod
    windows: int
