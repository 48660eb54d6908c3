"""`structsam-export tune`: which rate at which block, measured on the user's own photos.

1. Every block is merged alone at every candidate rate, on every search photo: how far do embedding
   and masks move from the unmerged model's?
2. Dynamic programming finds the rates of least summed loss at a cost, for every placement that may
   be chosen: at the cost of the uniform rate, or at the least one that keeps its loss.
3. The candidates run end to end on the search photos, the uniform rate among them; the best stays.
4. It is compared with the uniform rate on photos that neither step saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.tune.merging_loss import Loss, LossMeter
from structsam_export.tune.schedule_file import Schedule
from structsam_export.tune.schedule_search import TRIES, Candidate, Sensitivity, mean
from structsam_export.tune.sensitivity import Note, Progress, claim, sensitivities

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

RATES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75)
COSTS = ("gmac", "latency")
GOALS = tuple(TRIES)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_FEWEST = 3
_LARGEST_LOSS = 10.0  # far above what no embedding and no mask in common make, 2 or so
_ROUNDING = 1e-9  # of sums of costs


@dataclass(frozen=True)
class Goal:
    """What is sought.

    Args:
        cost: `gmac`, or `latency`: time of each block in PyTorch on this machine.
        least: `loss`, at the cost of the uniform rate; or `cost`, at its loss.
        max_loss: with `least="cost"`, the mean loss of the search photos that is allowed; None
            takes that of the uniform rate.
    """

    cost: str = "gmac"
    least: str = "loss"
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise UserError(f"unknown cost {self.cost!r}. Choose one of: {', '.join(COSTS)}")
        if self.least not in GOALS:
            raise UserError(f"unknown goal {self.least!r}. Choose one of: {', '.join(GOALS)}")
        most = self.max_loss
        if most is not None and (self.least != "cost" or not 0 < most <= _LARGEST_LOSS):
            raise UserError(
                f"a largest loss of {most:g} cannot be met. It goes with `least='cost'`, and lies "
                f"between 0 and {_LARGEST_LOSS:g}"
            )

    def budget_text(self, rate: float) -> str:
        """Say what must be kept, of the uniform `rate`."""
        if self.max_loss is not None:
            return f"mean loss {self.max_loss:g} on the search photos"
        return f"{'cost' if self.least == 'loss' else 'loss'} of the uniform rate {rate:g}"


@dataclass(frozen=True)
class TuneReport:
    """What was found.

    Args:
        best: the candidate of least loss, or of least cost, on the search photos.
        uniform: the uniform rate in the first placement: the budget.
        sensitivity: of the best placement.
        goal: one of `GOALS`.
        files: what was written.
    """

    schedule: Schedule
    best: Candidate
    uniform: Candidate
    candidates: tuple[Candidate, ...]
    sensitivity: Sensitivity
    cost_unit: str
    goal: str = "loss"
    files: tuple[Path, ...] = field(default=())

    @property
    def beats_uniform(self) -> bool:
        """Whether, on the held-out photos, it is better in loss or cost and worse in neither."""
        loss, uniform_loss = mean(self.best.held_out), mean(self.uniform.held_out)
        no_dearer = self.best.cost <= self.uniform.cost * (1 + _ROUNDING)
        cheaper = self.best.cost < self.uniform.cost * (1 - _ROUNDING)
        return no_dearer and loss <= uniform_loss and (cheaper or loss < uniform_loss)


def find_photos(images: Sequence[str | Path]) -> list[Path]:
    """List photos: files as they are, folders with what lies right inside.

    Raises:
        UserError: a path that does not exist, or fewer than three photos.
    """
    found: list[Path] = []
    for path in (Path(image).expanduser() for image in images):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"no photo or folder at {path}. Give photos, or folders of them")
    names = [photo.name for photo in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two photos are named {twice}. Rename one: results go by the name")
    if len(found) < _FEWEST:
        raise UserError(
            f"{len(found)} photo(s) were found, and {_FEWEST} are needed: some to search on, and "
            "one that the search does not see. Give more of them"
        )
    return found


def tune(
    source: ModelSource,
    images: Sequence[str | Path],
    uniform: Sequence[MergeConfig],
    rates: Sequence[float] = RATES,
    goal: Goal = Goal(),
    out: str | Path = "tune",
    progress: Progress = lambda title, done, total: None,
    note: Note = lambda text: None,
) -> TuneReport:
    """Find rates per block that lose less than one rate everywhere at its cost, or cost less.

    Args:
        images: photos or folders of them, unlabelled; every third is held out.
        uniform: one merging of all layers at one rate, the budget, in every placement that may be
            chosen, `attention` or `block`; that of the first is the one to beat.
        rates: candidates; the budget's is added to them, and what the method cannot do is dropped.
        note: told what is reused of a search that was stopped.

    Raises:
        UserError: any input that cannot be used, or a folder `out` of another search.
    """
    spec, base = source.spec, uniform[0]
    budget = _budget(uniform)
    photos = find_photos(images)
    search = [photo for i, photo in enumerate(photos) if i % 3 != 2]
    held_out = [photo for i, photo in enumerate(photos) if i % 3 == 2]
    allowed = _allowed_rates(spec, base, sorted({*rates, 0.0, budget}))
    described, folder = source.describe(), Path(out)
    asked = {
        "format": 1,
        "model": described.to_dict(),
        "merging": [{**each.to_dict(), "rate": None} for each in uniform],
        "rates": list(allowed),
        "photos": [[photo.name, photo.stat().st_size] for photo in photos],
    }
    claim(folder, asked)
    meter = LossMeter(source.load(), spec)
    found_in = {}
    for each in uniform:
        path = folder / f"sensitivity_{each.placement}.csv"
        loss, times = sensitivities(meter, each, allowed, search, path, progress, note)
        costs = _macs(spec, each, allowed) if goal.cost == "gmac" else times
        found_in[each.placement] = Sensitivity(each.placement, tuple(allowed), loss, costs)

    verify = _Verifier(meter, base, search, progress, 1 + TRIES[goal.least] * len(found_in))
    beaten = verify(found_in[base.placement].uniform(budget))
    best = _search(goal, list(found_in.values()), verify, beaten)
    progress("comparing on held-out photos", 0, 2)
    best, beaten = (replace(c, held_out=verify.losses(c, held_out)) for c in (best, beaten))
    progress("comparing on held-out photos", 2, 2)
    found = {
        "photos": {"search": len(search), "held_out": len(held_out)},
        "budget": goal.budget_text(budget),
        "cost": {"unit": goal.cost, "schedule": best.cost, "uniform": beaten.cost},
        "held_out_loss": {"schedule": mean(best.held_out), "uniform": mean(beaten.held_out)},
        "weights": described.weights,
    }
    schedule = Schedule(
        spec.name, base.method, best.rates, best.placement, dict(base.options), found
    )
    tried, best_table = tuple(verify.done), found_in[best.placement]
    return TuneReport(schedule, best, beaten, tried, best_table, goal.cost, goal.least)


def _search(
    goal: Goal, tables: Sequence[Sensitivity], verify: _Verifier, uniform: Candidate
) -> Candidate:
    """Return the candidate of least loss at the uniform one's cost, or of least cost."""
    if goal.least == "loss":
        for table in tables:
            for candidate in table.within_cost(uniform.cost):
                verify(candidate)
        return min(verify.done, key=lambda candidate: mean(candidate.search))
    limit = mean(uniform.search) if goal.max_loss is None else goal.max_loss
    within = [candidate for table in tables for candidate in table.within_loss(limit, verify)]
    within += [uniform] if mean(uniform.search) <= limit else []
    if not within:
        raise UserError(
            f"no schedule that saves much has a loss of at most {limit:g}: that of the uniform "
            f"rate {uniform.rates[0]:g} is {mean(uniform.search):.3g}. Allow more loss"
        )
    return min(within, key=lambda candidate: candidate.cost)


class _Verifier:
    """Runs candidates end to end on the search photos, each once."""

    def __init__(
        self,
        meter: LossMeter,
        base: MergeConfig,
        photos: Sequence[Path],
        progress: Progress,
        count: int,
    ) -> None:
        self.done: list[Candidate] = []
        self._asked = 0
        self._meter, self._base, self._photos = meter, base, photos
        self._progress, self._count = progress, count
        self._known: dict[tuple[str, tuple[float, ...]], tuple[Loss, ...]] = {}

    def __call__(self, candidate: Candidate) -> Candidate:
        """Return the candidate with its losses on the search photos."""
        key = candidate.placement, candidate.rates
        measured = replace(candidate, search=self._known.get(key, ()))
        if key not in self._known:
            measured = replace(candidate, search=self.losses(candidate, self._photos))
            self._known[key] = measured.search
            self.done.append(measured)
        self._asked += 1
        self._progress("verifying schedules", self._asked, self._count)
        return measured

    def losses(self, candidate: Candidate, photos: Sequence[Path]) -> tuple[Loss, ...]:
        """Measure the loss on every photo."""
        config = replace(self._base, rate=candidate.rates, placement=candidate.placement)
        return tuple(self._meter.losses(config, photo) for photo in photos)


def _budget(uniform: Sequence[MergeConfig]) -> float:
    """Return the one rate of all; raises `UserError` where it saves nothing or cannot be tuned."""
    for config in uniform:
        if config.placement not in ("attention", "block"):
            raise UserError(
                f"placement {config.placement!r} cannot be tuned: blocks of a stage share one "
                "rate. Use attention or block"
            )
    rate = uniform[0].rate
    if isinstance(rate, tuple) or not rate:
        raise UserError(f"budget {rate} saves nothing. Use one rate above 0, such as 0.5")
    return rate


def _allowed_rates(spec: ModelSpec, base: MergeConfig, rates: Sequence[float]) -> list[float]:
    """Return the rates that method and grid allow; raises `UserError` where the budget is none."""
    from structsam.block_table import block_table

    allowed = []
    for rate in rates:
        try:
            block_table(replace(base, rate=rate), spec.grid, spec.window_sizes)
            allowed.append(rate)
        except UserError:
            if rate == base.rate:
                raise
    return allowed


def _macs(spec: ModelSpec, base: MergeConfig, rates: Sequence[float]) -> np.ndarray:
    """Multiply-adds [B, R] / 10^9 of every block at every rate."""
    from structsam.flops import encoder_flops

    counted = [encoder_flops(spec, replace(base, rate=(rate,) * spec.depth)) for rate in rates]
    return np.array([[block.total / 1e9 for block in one.blocks] for one in counted]).T
