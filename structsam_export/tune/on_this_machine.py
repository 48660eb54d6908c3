"""The landscape of a search: losses by PyTorch, of INT8 by the runtime, latencies by encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.runtimes import RunOptions, find_backend
from structsam_export.tune.block_mixes import (
    MIXED_PLACEMENTS,
    Progress,
    block_losses,
    mixed_rates,
)
from structsam_export.tune.latency import Encoders, times_in_turns
from structsam_export.tune.mask_loss import MaskJudge
from structsam_export.tune.merging_loss import LossMeter
from structsam_export.tune.points import Point, gmac, require_possible
from structsam_export.tune.record import Record

if TYPE_CHECKING:
    from structsam.config import MergeConfig

_FEW = 2  # photos that every point is judged on
Say = Callable[[str], None]


def _is_the_reference(point: Point) -> bool:
    """Whether nothing is moved: it loses nothing by definition."""
    return not point.levers


class OnThisMachine:
    """The landscape: what points lose on the photos, and how long they take here."""

    def __init__(
        self,
        source: ModelSource,
        base: MergeConfig,
        backend: str,
        options: RunOptions,
        photos: Sequence[Path],
        folder: Path,
        record: Record,
        progress: Progress,
        say: Say,
    ) -> None:
        self._spec, self._base, self._backend, self._options = source.spec, base, backend, options
        self._record, self._progress, self._say = record, progress, say
        search = [photo for i, photo in enumerate(photos) if i % 3 != 2]
        self.photos = {
            "few": search[:_FEW],
            "search": search,
            "held_out": [photo for i, photo in enumerate(photos) if i % 3 == 2],
        }
        self._judge = MaskJudge(source, replace(base, rate=0.0))
        self.encoders = Encoders(self._judge, base, backend, folder / "encoders", search, say)

    def mixes(
        self,
        rates: Sequence[float],
        placements: Sequence[str],
        precision: str,
        sizes: Sequence[int | None],
    ) -> list[Point]:
        """Return points with rates per block, at these sizes."""
        found = []
        rates = (0.0, *sorted(rate for rate in rates if rate))
        for placement in (p for p in placements if p in MIXED_PLACEMENTS):
            base = replace(self._base, placement=placement)
            possible = [r for r in rates if self._possible(Point(None, r, placement))]
            meter = LossMeter(self._judge.model(None).sam, self._spec)
            loss = block_losses(
                meter, base, possible, self.photos["few"], self._record, self._progress
            )
            for mix in mixed_rates(self._spec, base, possible, loss):
                mixed = (Point(size, mix, placement, precision) for size in sizes)
                found += [point for point in mixed if self._possible(point)]
        return found

    def _possible(self, point: Point) -> bool:
        try:
            require_possible(point, self._spec, self._base)
        except UserError:
            return False
        return True

    def gmac(self, point: Point) -> float:
        """Return the multiply-adds of a point / 10^9."""
        return gmac(point, self._spec, self._base)

    def loss(self, points: Sequence[Point], photos: str) -> dict[Point, float]:
        """Return mean losses on `few`, `search` or `held_out` photos."""
        paths = self.photos[photos]
        where = {"few": "on few photos", "search": "", "held_out": "on photos not seen"}[photos]
        title = f"comparing masks {where}".strip()
        by_size = sorted(points, key=lambda point: -(point.image_size or 1 << 30))
        for done, point in enumerate(by_size, 1):
            missing = [path for path in paths if self._name(point, path) not in self._record]
            if missing and not _is_the_reference(point):
                self._measure_loss(point, missing)
            self._progress(title, done, len(points))
        return {
            point: 0.0
            if _is_the_reference(point)
            else float(np.mean([self._record.get(self._name(point, p), float) for p in paths]))
            for point in points
        }

    def _name(self, point: Point, path: Path) -> str:
        return f"loss {point.key} {path.name}"

    def _measure_loss(self, point: Point, paths: list[Path]) -> None:
        self._judge.look_at(paths)
        bundle = self.encoders.bundle(point) if "int8" in point.levers else None
        model = self._judge.model(point.image_size)
        if bundle is None:
            config = point.config(self._base)
            for path in paths:
                loss = self._judge.loss(model, model.features(config, path), path)
                self._record.keep(self._name(point, path), loss)
            return
        once = replace(self._options, keep_compiled=False)
        with find_backend(self._backend).runner(bundle, "encoder", once) as runner:
            for path in paths:
                features = runner.run({"image": model.photo(path).pixels})
                loss = self._judge.loss(model, features, path)
                self._record.keep(self._name(point, path), loss)

    def milliseconds(self, points: Sequence[Point]) -> dict[Point, float]:
        """Return latencies; a point that does not run here is left out."""
        new = [p for p in points if not p.stock and f"ratio {p.key}" not in self._record]
        if new:
            self._say(f"measuring {', '.join(point.key for point in new)}")
            once = replace(self._options, keep_compiled=False)
            times = times_in_turns(self.encoders, new, self._backend, once, self._say)
            self._record.keep(f"stock {new[0].key}", times.stock_ms)
            for point in new:
                self._record.keep(f"ratio {point.key}", times.ratio.get(point))
            for point, reason in times.refused.items():
                self._say(f"{point.key} is left out: {reason}")
            self.encoders.forget([point.unquantized for point in new])
        stock = [ms for group in self._record.named("stock ").values() for ms in group]
        usual = float(np.median(stock))
        ratios = {p: 1.0 if p.stock else self._record.get(f"ratio {p.key}", float) for p in points}
        return {point: usual * ratio for point, ratio in ratios.items() if ratio is not None}
