"""Boxes as detectors and annotations give them: a little outside of the photo, or of no use."""

from __future__ import annotations

from dataclasses import replace

from structsam.errors import UserError
from structsam_export.bulk.task import Task
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.prompts import AskedPrompts, Box, read_prompts

#: Pixels by which a box may stand out: rounding of its corners, not another photo's box.
_ROUNDING = 1.0


def with_usable_boxes(task: Task, geometry: ImageGeometry) -> tuple[Task, list[str]]:
    """Return a task with boxes that lie on the photo, and a sentence for each that was left out.

    What stands out by 1 pixel at most is cut off.

    Raises:
        UserError: no box is left, a point is wrong, or points have several boxes.
    """
    task = replace(task, boxes=[_clipped(box, geometry) for box in task.boxes])
    asked = task.prompts()
    if task.points:  # with them a box is one prompt, which is of use as a whole
        read_prompts(**asked.arrays(), geometry=geometry)
        return task, []
    problems = [_problem(replace(asked, boxes=(box,)), geometry) for box in task.boxes]
    kept = [index for index, problem in enumerate(problems) if problem is None]
    told = [problem for problem in problems if problem is not None]
    if not kept:
        more = f" (and {len(told) - 1} more boxes)" if len(told) > 1 else ""
        raise UserError(told[0] + more)
    boxes = [task.boxes[index] for index in kept]
    labels = [task.labels[index] for index in kept] if task.labels else []
    notes = [f"a box was left out: {problem}" for problem in told]
    return replace(task, boxes=boxes, labels=labels), notes


def _problem(asked: AskedPrompts, geometry: ImageGeometry) -> str | None:
    try:
        read_prompts(**asked.arrays(), geometry=geometry)
    except UserError as error:
        return str(error)
    return None


def _clipped(box: Box, geometry: ImageGeometry) -> Box:
    height, width = geometry.original_size
    x0, y0, x1, y1 = (
        min(max(value, 0.0), float(side)) if -_ROUNDING <= value <= side + _ROUNDING else value
        for value, side in zip(box, (width, height, width, height), strict=True)
    )
    return x0, y0, x1, y1
