"""What a results folder says: means with intervals, differences to the unmerged run, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from structsam.evaluation.bootstrap import FEWEST_FOR_VERDICT, LEVEL, RESAMPLES, Estimate
from structsam.evaluation.read_results import RunRows, read_facts, read_latency, read_rows
from structsam.evaluation.run_metrics import (
    Groups,
    MetricSummary,
    Pairs,
    pair,
    run_metrics,
    set_metrics,
)

#: How the numbers came about; every report says so.
RULES = (
    "A metric's value is its mean over all masks of all images, not over images first.",
    "Every annotated object has pixels (others are listed as problems), so an empty predicted mask "
    "scores 0. Where a metric is undefined its value is left out of the mean and counted. Crowd "
    "regions count for average precision only. That ranks by a detector's score where boxes are a "
    "detector's, else by the model's predicted IoU.",
    f"Intervals hold {100 * LEVEL:g} % of {RESAMPLES:,} bootstrap resamples. Whole images are "
    "drawn, because masks of one image are not independent. Below about 20 images they are too "
    "narrow.",
    "Differences to the unmerged run are paired: the same masks of the images that both runs have, "
    "drawn together. `no difference` means that the interval contains 0: none was found. Each "
    "interval stands alone: of twenty comparisons without any effect one is expected to miss 0.",
    "Disagreement is 1 - IoU between a run's mask and the unmerged run's mask for the same prompt; "
    "it needs no annotation.",
)
_NAMED = 5


@dataclass(frozen=True)
class Latency:
    """Time of the encoder per image in ms: the median, and where the middle 80 % lie."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    images: int


@dataclass(frozen=True)
class RunSummary:
    """One run of a results folder.

    Args:
        facts: its entry in `evaluation.json`.
        baseline: this is the unmerged run that others are compared with.
        images: whole ones, with at least one mask.
        masks: without crowds.
        metrics: by name, in the order of the columns.
        disagreement: mean of 1 - IoU with the unmerged run's masks.
        set_metrics: average precision; values in 0..1 or NaN, without interval.
        latency: None where no time was written.
        notes: what a reader must know: unfinished, images left out.
    """

    facts: dict[str, Any]
    baseline: bool
    images: int = 0
    masks: int = 0
    metrics: dict[str, MetricSummary] = field(default_factory=dict)
    disagreement: Estimate | None = None
    set_metrics: dict[str, float] = field(default_factory=dict)
    latency: Latency | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's files."""
        return str(self.facts["name"])

    @property
    def label(self) -> str:
        """Name for tables."""
        return str(self.facts.get("label") or self.name)


@dataclass(frozen=True)
class Summary:
    """One results folder: one dataset, one model, one protocol.

    Args:
        folder: where it lies.
        facts: its `evaluation.json`.
        runs: the unmerged run first, then in the order of the file.
        notes: about the folder as a whole.
    """

    folder: Path
    facts: dict[str, Any]
    runs: tuple[RunSummary, ...]
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> RunSummary | None:
        """The unmerged run, if there is one."""
        return next((run for run in self.runs if run.baseline), None)

    @property
    def random_weights(self) -> bool:
        """Whether the model has never seen an image."""
        return bool(self.facts["model"].get("weights") == "random")

    @property
    def problems(self) -> dict[str, int]:
        """How many images or objects were left out, by kind, most frequent first."""
        counted = Counter(problem["kind"] for problem in self.facts.get("problems", ()))
        return dict(counted.most_common())

    def problem_lines(self) -> list[str]:
        """Count what was left out by kind, and name the first few of each, a line per kind."""
        problems = self.facts.get("problems", ())
        return [
            f"{kind}: {number} ({named([p['image_id'] for p in problems if p['kind'] == kind])})"
            for kind, number in self.problems.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; what is undefined is null."""
        facts = {k: v for k, v in self.facts.items() if k not in ("runs", "problems")}
        runs = [{**run.facts, **asdict(run)} for run in self.runs]
        for run in runs:
            del run["facts"]
        told = {
            **facts,
            "problems": self.problems,
            "notes": list(self.notes),
            "rules": list(RULES),
            "runs": runs,
        }
        plain: dict[str, Any] = _without_nan(told)
        return plain


def summarise(
    folder: str | Path,
    by: Groups | None = None,
    from_masks: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Summary:
    """Summarise a results folder.

    Args:
        folder: what `structsam-export evaluate` wrote.
        by: adds the metrics' means by category, or by size of the object (COCO's 32^2, 96^2).
        from_masks: also compare masks with the unmerged run's, and compute average precision
            where the set has categories; only that keeps all masks of a run in memory, about
            2 KB each.
        level: of the intervals, in 0..1.
        resamples: of the bootstrap.

    Raises:
        UserError: no results folder, another version's, or damaged rows.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    base_facts = find_baseline(facts["runs"])
    base = read_rows(folder, base_facts["name"], from_masks) if base_facts else None
    runs = []
    for run in sorted(facts["runs"], key=lambda run: run is not base_facts):
        is_base = run is base_facts
        rows = base if is_base else read_rows(folder, run["name"], from_masks)
        found = RunSummary(run, is_base, latency=_latency(read_latency(folder, run["name"])))
        if rows is None:
            found = replace(found, notes=("no rows: this run has not started",))
        else:
            pairs = None if is_base or base is None else pair(rows, base)
            metrics, disagreement = run_metrics(rows, base, pairs, by, level, resamples)
            found = replace(
                found,
                images=len(rows.image_ids),
                masks=int((~rows.crowd).sum()),
                metrics=metrics,
                disagreement=disagreement,
                set_metrics=set_metrics(rows) if from_masks else {},
                notes=tuple(_run_notes(run, rows, pairs, facts)),
            )
        runs.append(found)
    return Summary(folder, facts, tuple(runs), tuple(_folder_notes(facts, runs)))


def find_baseline(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the unmerged run: of several the one by PyTorch in FP32, else the first.

    One at another input size than the trained one is it only where there is no other.
    """
    unmerged = [run for run in runs if run.get("merging") is None]
    unmerged = [run for run in unmerged if run.get("image_size") is None] or unmerged
    plain = [r for r in unmerged if (r.get("backend"), r.get("precision")) == ("torch", "fp32")]
    return next(iter(plain or unmerged), None)


def _latency(times: np.ndarray) -> Latency | None:
    if not len(times):
        return None
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(times))


def _run_notes(
    run: dict[str, Any], rows: RunRows, pairs: Pairs | None, facts: dict[str, Any]
) -> list[str]:
    notes = []
    if not run.get("complete"):
        total = facts["dataset"].get("images")
        of_all = f" of {total}" if total else ""
        notes.append(f"unfinished: {len(rows.image_ids)}{of_all} images; run `evaluate` again")
    if rows.partial:
        notes.append(f"left out, rows are missing or doubled: {named(rows.partial)}")
    if rows.damaged:
        notes.append(f"left out, lines that break off: {rows.damaged}")
    if pairs is not None and pairs.images < len(rows.image_ids):
        notes.append(f"compared with the unmerged run on {pairs.images} images that both have")
    if pairs is not None and pairs.other:
        notes.append(f"not compared, objects or prompts differ: {named(pairs.other)}")
    if rows.crowd.any():
        notes.append(f"{int(rows.crowd.sum())} crowd regions, for average precision only")
    return notes


def _folder_notes(facts: dict[str, Any], runs: Sequence[RunSummary]) -> list[str]:
    notes = []
    if not any(run.baseline for run in runs):
        notes.append(
            "There is no unmerged run, so nothing can be compared: evaluate again with the "
            "baseline into the same folder."
        )
    if any(run.images == 1 for run in runs):
        notes.append("One image only: there is no interval.")
    elif any(1 < run.images < FEWEST_FOR_VERDICT for run in runs):
        notes.append(
            f"Fewer than {FEWEST_FOR_VERDICT} images: differences may be luck, so none is judged."
        )
    elif any(1 < run.images < 20 for run in runs):
        notes.append("Fewer than 20 images: the intervals are too narrow.")
    if any(run.set_metrics for run in runs):
        notes.append(
            "Average precision is that of the prompted objects, each with its class known: not "
            "comparable with detection results, unless the prompts were a detector's boxes."
        )
    return notes


def named(names: Sequence[str]) -> str:
    """List the first few names, and count the rest.

    >>> named(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value
