"""`structsam-export tune`: which rate at which block, measured on the user's own photos.

1. Every block is merged alone at every candidate rate, on every search photo: how far do embedding
   and masks move from the unmerged model's?
2. Dynamic programming finds the rates of least summed loss at the cost of the uniform rate, for
   every placement that may be chosen.
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
from structsam_export.merging_loss import Judge, Loss
from structsam_export.schedule_file import Schedule
from structsam_export.sensitivity import Progress, claim, sensitivities

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

RATES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75)
COSTS = ("gmac", "latency")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_FEWEST = 3
_POWERS = (2.0, 1.0)  # of the blocks' losses in their sum: independent errors, or aligned ones


@dataclass(frozen=True)
class Candidate:
    """Rates per block, their cost, and their loss per search and per held-out photo."""

    name: str
    placement: str
    rates: tuple[float, ...]
    cost: float
    search: tuple[Loss, ...] = ()
    held_out: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class TuneReport:
    """What was found.

    Args:
        best: the candidate of least loss on the search photos.
        uniform: the uniform rate in the first placement: the budget.
        sensitivity: [B, R], the loss if a block alone merges at a rate, in the best placement.
        pareto: (cost, predicted loss) of the schedules for other budgets, in the best placement.
        files: what was written.
    """

    schedule: Schedule
    best: Candidate
    uniform: Candidate
    candidates: tuple[Candidate, ...]
    sensitivity: np.ndarray
    rates: tuple[float, ...]
    cost_unit: str
    pareto: tuple[tuple[float, float], ...] = ()
    files: tuple[Path, ...] = field(default=())

    @property
    def beats_uniform(self) -> bool:
        """Whether the mean loss on the held-out photos is below the uniform rate's."""
        return mean(self.best.held_out) < mean(self.uniform.held_out)


def mean(losses: Sequence[Loss]) -> float:
    """Mean total loss of some photos."""
    return sum(loss.total for loss in losses) / len(losses)


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
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    out: str | Path = "tune",
    progress: Progress = lambda title, done, total: None,
) -> TuneReport:
    """Find rates per block that lose less than one rate everywhere, at its cost.

    Args:
        images: photos or folders of them, unlabelled; every third is held out.
        budget: the uniform rate whose cost is the budget.
        placements: that may be chosen, `attention` or `block`; the budget is that of the first.
        rates: candidates; `budget` is added to them, and what the method cannot do is dropped.
        cost: `gmac`, or `latency`: time of each block in PyTorch on this machine.

    Raises:
        UserError: any input that cannot be used, or a folder `out` of another search.
    """
    import structsam
    from structsam.config import MergeConfig
    from structsam.models import model_spec
    from structsam_export.weights_source import describe_weights

    spec = model_spec(model)
    for placement in placements:
        if placement not in ("attention", "block"):
            raise UserError(
                f"placement {placement!r} cannot be tuned: blocks of a stage share one rate. "
                "Use attention or block"
            )
    if cost not in COSTS:
        raise UserError(f"unknown cost {cost!r}. Choose one of: {', '.join(COSTS)}")
    if budget <= 0:
        raise UserError(f"budget {budget:g} saves nothing. Use a rate above 0, such as 0.5")
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
    depth = spec.depth
    judge = Judge(structsam.load_sam(model, checkpoint, weights, seed), spec)
    uniform_index, spent = allowed.index(budget), 0.0
    candidates, tables = [], {}
    for each in bases:
        path = folder / f"sensitivity_{each.placement}.csv"
        table, times = sensitivities(judge, each, allowed, search, path, progress)
        costs = _macs(spec, each, allowed) if cost == "gmac" else times
        if each is base:
            spent = float(costs[:, uniform_index].sum())
            candidates.append(_candidate("uniform", base, allowed, costs, [uniform_index] * depth))
        candidates += _searched(each, table, costs, allowed, spent)
        tables[each.placement] = table, costs
    verified = []
    for number, candidate in enumerate(candidates):
        progress("verifying schedules", number, len(candidates))
        config = replace(base, rate=candidate.rates, placement=candidate.placement)
        verified.append(
            replace(candidate, search=tuple(judge.losses(config, photo) for photo in search))
        )
    progress("verifying schedules", len(candidates), len(candidates))
    best = min(verified, key=lambda candidate: mean(candidate.search))
    progress("comparing on held-out photos", 0, 2)
    best, uniform = (
        replace(
            one,
            held_out=tuple(
                judge.losses(replace(base, rate=one.rates, placement=one.placement), photo)
                for photo in held_out
            ),
        )
        for one in (best, verified[0])
    )
    table, costs = tables[best.placement]
    progress("comparing on held-out photos", 2, 2)
    found = {
        "photos": {"search": len(search), "held_out": len(held_out)},
        "budget": f"cost of the uniform rate {budget:g}",
        "cost": {"unit": cost, "schedule": best.cost, "uniform": uniform.cost},
        "held_out_loss": {"schedule": mean(best.held_out), "uniform": mean(uniform.held_out)},
        "weights": source["weights"],
    }
    schedule = Schedule(model, method, best.rates, best.placement, dict(base.options), found)
    return TuneReport(
        schedule,
        best,
        uniform,
        tuple(verified),
        table,
        tuple(allowed),
        cost,
        _pareto(table, costs, spent),
    )


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


def _candidate(
    name: str, base: MergeConfig, rates: Sequence[float], cost: np.ndarray, picked: Sequence[int]
) -> Candidate:
    total = float(cost[range(len(cost)), picked].sum())
    return Candidate(name, base.placement, tuple(rates[i] for i in picked), total)


def _searched(
    base: MergeConfig, loss: np.ndarray, cost: np.ndarray, rates: Sequence[float], spent: float
) -> list[Candidate]:
    """What the search proposes for each way losses may add up."""
    from structsam.schedule import choose_rates

    return [
        _candidate(
            f"{base.placement}, sum of losses^{power:g}",
            base, rates, cost, choose_rates(loss**power, cost, spent),
        )
        for power in _POWERS
    ]  # fmt: skip


def _pareto(loss: np.ndarray, cost: np.ndarray, spent: float) -> tuple[tuple[float, float], ...]:
    """(cost, predicted loss) for budgets from the cheapest to the dearest."""
    from structsam.schedule import choose_rates

    rows = range(len(loss))
    points = []
    for budget in np.linspace(cost.min(1).sum(), cost.max(1).sum(), 25):
        picked = choose_rates(loss**2, cost, float(budget))
        points.append(
            (float(cost[rows, picked].sum()), float((loss[rows, picked] ** 2).sum()) ** 0.5)
        )
    return tuple(points)
