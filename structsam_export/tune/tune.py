"""`structsam-export tune`: which rate at which block, measured on the user's own photos.

1. Every block is merged alone at every candidate rate, on every search photo: how far do embedding
   and masks move from the unmerged model's?
2. Dynamic programming finds the rates of least summed loss at a cost, for every placement that may
   be chosen: at the cost of the uniform rate, or at the least one that keeps its loss.
3. The candidates run end to end on the search photos, the uniform rate among them; the best stays.
4. It is compared with the uniform rate on photos that neither step saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.tune.merging_loss import Judge, Loss
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
            raise UserError(f"no photo or folder at {path}. Pass --images FOLDER")
    names = [photo.name for photo in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two photos are named {twice}. Rename one: results go by the name")
    if len(found) < _FEWEST:
        raise UserError(
            f"{len(found)} photo(s) were found, and {_FEWEST} are needed: some to search on, and "
            "one that the search does not see. Pass --images FOLDER with more of them"
        )
    return found


def tune(
    model: str,
    images: Sequence[str | Path],
    budget: float = 0.5,
    method: str = "structsam",
    placements: Sequence[str] = ("attention",),
    options: Mapping[str, Any] | None = None,
    rates: Sequence[float] = RATES,
    cost: str = "gmac",
    least: str = "loss",
    max_loss: float | None = None,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    out: str | Path = "tune",
    progress: Progress = lambda title, done, total: None,
    note: Note = lambda text: None,
) -> TuneReport:
    """Find rates per block that lose less than one rate everywhere at its cost, or cost less.

    Args:
        images: photos or folders of them, unlabelled; every third is held out.
        budget: the uniform rate to beat; its cost, or its loss, is the budget.
        placements: that may be chosen, `attention` or `block`; the budget is that of the first.
        rates: candidates; `budget` is added to them, and what the method cannot do is dropped.
        cost: `gmac`, or `latency`: time of each block in PyTorch on this machine.
        least: `loss`, at the cost of the uniform rate; or `cost`, at its loss.
        max_loss: with `least="cost"`, the mean loss of the search photos that is allowed; None
            takes that of the uniform rate.
        note: told what is reused of a search that was stopped.

    Raises:
        UserError: any input that cannot be used, or a folder `out` of another search.
    """
    import structsam
    from structsam.config import MergeConfig
    from structsam.models import model_spec
    from structsam_export.bundle.weights_source import describe_weights

    spec = model_spec(model)
    _refuse_mistakes(budget, placements, cost, least, max_loss)
    bases = [
        MergeConfig.of(method, budget, "all", options=options or {}, placement=placement)
        for placement in dict.fromkeys(placements)
    ]
    base = bases[0]
    photos = find_photos(images)
    search = [photo for i, photo in enumerate(photos) if i % 3 != 2]
    held_out = [photo for i, photo in enumerate(photos) if i % 3 == 2]
    allowed = _allowed_rates(spec, base, sorted({*rates, 0.0, budget}))
    source = describe_weights(model, checkpoint, weights, seed)
    folder = Path(out)
    asked = {
        "format": 1,
        "model": source,
        "merging": [{**each.to_dict(), "rate": None} for each in bases],
        "rates": list(allowed),
        "photos": [[photo.name, photo.stat().st_size] for photo in photos],
    }
    claim(folder, asked)
    judge = Judge(structsam.load_sam(model, checkpoint, weights, seed), spec)
    found_in = {}
    for each in bases:
        path = folder / f"sensitivity_{each.placement}.csv"
        loss, times = sensitivities(judge, each, allowed, search, path, progress, note)
        costs = _macs(spec, each, allowed) if cost == "gmac" else times
        found_in[each.placement] = Sensitivity(each.placement, tuple(allowed), loss, costs)

    verify = _Verifier(judge, base, search, progress, 1 + TRIES[least] * len(found_in))
    uniform = verify(found_in[base.placement].uniform(budget))
    if least == "loss":
        for one in found_in.values():
            for candidate in one.within_cost(uniform.cost):
                verify(candidate)
        best = min(verify.done, key=lambda candidate: mean(candidate.search))
    else:
        limit = mean(uniform.search) if max_loss is None else max_loss
        within = [c for one in found_in.values() for c in one.within_loss(limit, verify)]
        within += [uniform] if mean(uniform.search) <= limit else []
        if not within:
            raise UserError(
                f"no schedule that saves much has a loss of at most {limit:g}: that of the uniform "
                f"rate {budget:g} is {mean(uniform.search):.3g}. Allow more loss"
            )
        best = min(within, key=lambda candidate: candidate.cost)
    progress("comparing on held-out photos", 0, 2)
    best, uniform = (replace(c, held_out=verify.losses(c, held_out)) for c in (best, uniform))
    progress("comparing on held-out photos", 2, 2)
    found = {
        "photos": {"search": len(search), "held_out": len(held_out)},
        "budget": _budget_text(budget, least, max_loss),
        "cost": {"unit": cost, "schedule": best.cost, "uniform": uniform.cost},
        "held_out_loss": {"schedule": mean(best.held_out), "uniform": mean(uniform.held_out)},
        "weights": source["weights"],
    }
    schedule = Schedule(model, method, best.rates, best.placement, dict(base.options), found)
    return TuneReport(
        schedule, best, uniform, tuple(verify.done), found_in[best.placement], cost, least
    )


class _Verifier:
    """Runs candidates end to end on the search photos, each once."""

    def __init__(
        self,
        judge: Judge,
        base: MergeConfig,
        photos: Sequence[Path],
        progress: Progress,
        count: int,
    ) -> None:
        self.done: list[Candidate] = []
        self._asked = 0
        self._judge, self._base, self._photos = judge, base, photos
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
        return tuple(self._judge.losses(config, photo) for photo in photos)


def _refuse_mistakes(
    budget: float, placements: Sequence[str], cost: str, least: str, max_loss: float | None
) -> None:
    for placement in placements:
        if placement not in ("attention", "block"):
            raise UserError(
                f"placement {placement!r} cannot be tuned: blocks of a stage share one rate. "
                "Use attention or block"
            )
    if cost not in COSTS:
        raise UserError(f"unknown cost {cost!r}. Choose one of: {', '.join(COSTS)}")
    if least not in GOALS:
        raise UserError(f"unknown goal {least!r}. Choose one of: {', '.join(GOALS)}")
    if max_loss is not None and (least != "cost" or not 0 < max_loss <= _LARGEST_LOSS):
        raise UserError(
            f"a largest loss of {max_loss:g} cannot be met. It goes with --least cost, and lies "
            f"between 0 and {_LARGEST_LOSS:g}"
        )
    if budget <= 0:
        raise UserError(f"budget {budget:g} saves nothing. Use a rate above 0, such as 0.5")


def _budget_text(budget: float, least: str, max_loss: float | None) -> str:
    if max_loss is not None:
        return f"mean loss {max_loss:g} on the search photos"
    return f"{'cost' if least == 'loss' else 'loss'} of the uniform rate {budget:g}"


def _allowed_rates(spec: ModelSpec, base: MergeConfig, rates: Sequence[float]) -> list[float]:
    """Return the rates that method and grid allow; raises `UserError` where the budget is none."""
    from structsam.flops import encoder_flops

    allowed = []
    for rate in rates:
        try:
            encoder_flops(spec, replace(base, rate=(rate,) * spec.depth))
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
