"""One photo of a source and what is asked of it, and tasks in the order in which they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structsam_export.predict.prompts import AskedPrompts, Box, Point

#: The category of masks that have no other.
OBJECT = {"id": 1, "name": "object"}


@dataclass
class Task:
    """One photo of a source.

    Args:
        name: what the source calls it; unique.
        path: its file.
        points: (x, y, label) in pixels; all points of a photo are one prompt.
        boxes: (x0, y0, x1, y1) in pixels; each is a prompt of its own.
        labels: what an annotation says besides its box, by box: `category_id` and `source_id`.
    """

    name: str
    path: Path
    points: list[Point] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)

    def prompts(self) -> AskedPrompts:
        """Return its prompts as `predict` reads them.

        Raises:
            UserError: points with several boxes.
        """
        return AskedPrompts(tuple(self.points), tuple(self.boxes), all_masks=False)


class Tasks:
    """Tasks by name, in the order in which a file names them first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name: dict[str, Task] = {}

    def of(self, name: str) -> Task:
        """Return the task of that name, made where it is not there."""
        if name not in self.by_name:
            self.by_name[name] = Task(name, self.folder / name)
        return self.by_name[name]
