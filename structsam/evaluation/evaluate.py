"""Scores one predictor on the images of a dataset, and appends a row for every mask."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam.evaluation.prompts import Prompting, segment
from structsam.evaluation.protocols import Box, EvaluationProtocol, MaskPredictor
from structsam.evaluation.results import ProblemFile, RunFiles
from structsam.evaluation.sample import ObjectMask, Problem, ProblemError, Sample

if TYPE_CHECKING:
    from structsam.evaluation.datasets.base import Dataset
    from structsam.evaluation.metrics.base import MaskMetric

#: Told after every image: how many are done, of how many.
OnImage = Callable[[int, int], None]


@dataclass(frozen=True)
class Setting:
    """What is asked of every run alike.

    Args:
        limit: only so many images, spread over the set; None takes all.
        smallest: share of the image's area that an object needs, in 0..1; smaller ones are
            counted as too small.
        max_objects: per image, chosen at random but the same in every run; None takes all.
        workers: threads that decode images ahead and score masks behind the predictor.
        strict: stop at the first problem instead of counting it.
    """

    dataset: Dataset
    protocol: EvaluationProtocol
    metrics: Sequence[MaskMetric]
    prompting: Prompting = field(default_factory=Prompting)
    smallest: float = 0.001
    max_objects: int | None = 10
    workers: int = 2
    strict: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.smallest < 1:
            raise UserError(f"smallest {self.smallest} is out of range. Use 0 up to below 1")
        if self.max_objects is not None and self.max_objects < 1:
            raise UserError(f"max objects {self.max_objects} is out of range. Use 1 or more")
        if self.workers < 1:
            raise UserError(f"workers {self.workers} is out of range. Use 1 or more")

    @property
    def image_ids(self) -> list[str]:
        """The images that are scored, in the set's order."""
        return evenly(self.dataset.image_ids, self.limit)

    def files_of(self, folder: Path, run: str) -> RunFiles:
        """Return the files of a run in a results folder; raises `UserError` if they are others."""
        return RunFiles(folder, run, [metric.name for metric in self.metrics])


def evaluate(
    predictor: MaskPredictor,
    setting: Setting,
    image_ids: Sequence[str],
    folder: Path,
    run: str,
    on_image: OnImage = lambda done, total: None,
) -> None:
    """Score `predictor` on `image_ids`, skipping what `folder` already holds of this run.

    Rows are appended image by image, so that an interruption loses the few images in work at most,
    and memory does not grow with their number.

    Raises:
        UserError: an unreadable results folder; with `strict`, the first problem.
    """
    files = setting.files_of(folder, run)
    problems = ProblemFile(folder)
    todo = files.missing(image_ids)
    done = len(image_ids) - len(todo)
    on_image(done, len(image_ids))
    with ThreadPoolExecutor(setting.workers) as pool:
        waiting: deque[tuple[Future[list[dict[str, Any]]], dict[str, Any]]] = deque()

        def finish_one() -> None:
            nonlocal done
            rows, timing = waiting.popleft()
            files.append(rows.result(), timing)
            done += 1
            on_image(done, len(image_ids))

        for name, prepared in _loaded(setting, todo, pool):
            problems.add(prepared.problems)
            if setting.strict and prepared.problems:
                raise ProblemError(prepared.problems[0])
            masks, scores, boxes, timing = _predict(predictor, setting, prepared)
            rows = str(len(prepared.objects) + len(prepared.others))
            timing = {"image_id": name, "rows": rows, **timing}
            waiting.append((pool.submit(_rows, setting, prepared, masks, scores, boxes), timing))
            while len(waiting) > setting.workers:
                finish_one()
        while waiting:
            finish_one()


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A sample with its chosen objects, and what the protocol makes of it.

    `objects` are prompted; `others` only have rows, for average precision.
    """

    sample: Sample
    objects: tuple[ObjectMask, ...]
    problems: tuple[Problem, ...]
    others: tuple[ObjectMask, ...] = ()
    image: np.ndarray | None = None  # None where there is nothing to predict
    prompt_masks: tuple[np.ndarray, ...] = ()
    valid: np.ndarray | None = None  # where a click may correct, as `prompt_masks`; None: anywhere
    boxes: tuple[Box | None, ...] = ()


def _loaded(
    setting: Setting, names: Iterable[str], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, _Prepared]]:
    """Samples in order, decoded a few ahead."""
    ahead: deque[tuple[str, Future[_Prepared]]] = deque()
    for name in names:
        ahead.append((name, pool.submit(_prepare, setting, name)))
        if len(ahead) > setting.workers:
            first, future = ahead.popleft()
            yield first, future.result()
    while ahead:
        first, future = ahead.popleft()
        yield first, future.result()


def _prepare(setting: Setting, name: str) -> _Prepared:
    try:
        sample = setting.dataset.load(name)
    except ProblemError as error:
        nothing = Sample(name, np.zeros((1, 1, 3), np.uint8), ())
        return _Prepared(nothing, (), (error.problem,))
    objects, small = choose_objects(sample, setting)
    prompts = {each.object_id: setting.protocol.prompt_mask(each.mask) for each in objects}
    kept = []
    for each in objects:
        if each.box is None and not prompts[each.object_id].any():
            small.append(_too_small(sample, each, "nothing is left at the input's size"))
        else:
            kept.append(each)
    problems = (*sample.problems, *small)
    others = tuple(each for each in sample.objects if not each.prompted)
    if not kept:
        return _Prepared(sample, (), problems, others)
    image = setting.protocol.prepare(sample.image)
    return _Prepared(
        sample,
        tuple(kept),
        problems,
        others,
        image,
        tuple(prompts[each.object_id] for each in kept),
        None if sample.valid is None else setting.protocol.prompt_mask(sample.valid),
        tuple(_scaled(each.box, sample.image.shape, image.shape) for each in kept),
    )


def _scaled(box: Box | None, before: tuple[int, ...], after: tuple[int, ...]) -> Box | None:
    """A box of an image [H, W, 3] in pixels of the prepared one, cut at its border."""
    if box is None:
        return None
    sides = np.tile(np.divide(after[1::-1], before[1::-1]), 2)
    x0, y0, x1, y1 = (np.array(box) * sides).tolist()
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(after[1])), min(y1, float(after[0]))


def choose_objects(
    sample: Sample, setting: Setting
) -> tuple[tuple[ObjectMask, ...], list[Problem]]:
    """Leave out prompted objects that no score can be fair to, then take `max_objects` of the rest.

    Those are too small, or lie wholly where nothing must be scored. A detection that found nothing
    has an empty mask and a box: it stays. The choice depends on the image's name and the seed
    alone.
    """
    area = sample.image.shape[0] * sample.image.shape[1]
    fair, small = [], []
    for each in (each for each in sample.objects if each.prompted):
        if each.box is not None and not each.mask.any():
            fair.append(each)
            continue
        share = float(each.mask.sum()) / area
        if share < setting.smallest or share == 0:
            small.append(_too_small(sample, each, f"{100 * share:.3g} % of the image"))
        elif sample.valid is not None and not (each.mask & sample.valid).any():
            detail = f"object {each.object_id}: every pixel is one that must not be scored"
            small.append(Problem(sample.image_id, "left out", detail))
        else:
            fair.append(each)
    if setting.max_objects is not None and len(fair) > setting.max_objects:
        seed = [setting.prompting.seed, zlib.crc32(sample.image_id.encode())]
        order = np.random.default_rng(seed).permutation(len(fair))
        fair = [fair[i] for i in sorted(order[: setting.max_objects].tolist())]
    return tuple(fair), small


def _too_small(sample: Sample, each: ObjectMask, detail: str) -> Problem:
    return Problem(sample.image_id, "too small", f"object {each.object_id}: {detail}")


def _predict(
    predictor: MaskPredictor, setting: Setting, prepared: _Prepared
) -> tuple[np.ndarray, np.ndarray, list[Box], dict[str, str]]:
    if prepared.image is None:
        return np.zeros((0, 1, 1), bool), np.zeros(0), [], {}
    predictor.timings.clear()
    predictor.set_image(prepared.image)
    low_res, scores, boxes = segment(
        predictor,
        setting.protocol,
        setting.prompting,
        prepared.sample.image_id,
        list(prepared.prompt_masks),
        list(prepared.boxes),
        [each.object_id for each in prepared.objects],
        prepared.valid,
    )
    size = (prepared.sample.image.shape[0], prepared.sample.image.shape[1])
    masks = setting.protocol.finish(predictor, low_res, size)
    steps = ("preprocess", "encode", "decode")
    timing = {f"{s}_ms": f"{predictor.timings[s]:.2f}" for s in steps if s in predictor.timings}
    return masks, scores, boxes, timing


def _rows(
    setting: Setting,
    prepared: _Prepared,
    masks: np.ndarray,
    scores: np.ndarray,
    boxes: Sequence[Box],
) -> list[dict[str, Any]]:
    from structsam.evaluation.mask_rle import encode

    rows = []
    for each, mask, score, box in zip(prepared.objects, masks, scores, boxes, strict=True):
        row = _row(prepared, each) | {
            "box": " ".join(f"{value:.6g}" for value in box),
            "score": f"{float(score) if each.score is None else each.score:.6g}",
            "rle": encode(mask),
        }
        if each.mask.any():
            for metric in setting.metrics:
                value = metric(mask, each.mask, prepared.sample.valid)
                row[metric.name] = "" if np.isnan(value) else f"{value:.6g}"
        rows.append(row)
    return rows + [_row(prepared, each) for each in prepared.others]


def _row(prepared: _Prepared, each: ObjectMask) -> dict[str, Any]:
    """What is known of an object without a prediction."""
    from structsam.evaluation.mask_rle import encode

    height, width = prepared.sample.image.shape[:2]
    return {
        "image_id": prepared.sample.image_id,
        "object_id": each.object_id,
        "objects": len(prepared.objects) + len(prepared.others),
        "category": " ".join(each.category.split()),  # a row is one line
        "height": height,
        "width": width,
        "area": int(each.mask.sum()),
        "crowd": int(each.crowd),
        "truth_rle": encode(each.mask) if each.mask.any() else "",
    }


def evenly(names: Sequence[str], limit: int | None) -> list[str]:
    """Take `limit` names spread over the whole list; None takes all.

    >>> evenly(["a", "b", "c", "d", "e"], 2)
    ['a', 'd']
    """
    if limit is None or limit >= len(names):
        return list(names)
    if limit < 1:
        raise UserError(f"limit {limit} is out of range. Use 1 or more")
    return [names[i * len(names) // limit] for i in range(limit)]
