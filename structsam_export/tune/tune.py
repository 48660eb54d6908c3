"""`structsam-export tune`: the frontier of latency and loss on the user's own photos.

What a search asks is measured here: losses by PyTorch, of INT8 by the runtime itself, and latencies
of encoders that are exported on the fly. Every result is kept as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.machine import hardware
from structsam_export.predict.calibration_photos import FEWEST as FEWEST_TO_CALIBRATE
from structsam_export.runtimes import RunOptions, find_backend
from structsam_export.tune.block_mixes import MIXED_PLACEMENTS, block_losses, mixed_rates
from structsam_export.tune.latency import Encoders, times_in_turns
from structsam_export.tune.mask_loss import MaskJudge
from structsam_export.tune.merging_loss import LossMeter
from structsam_export.tune.points import (
    PLACEMENTS,
    RATES,
    Point,
    gmac,
    grid,
    require_possible,
    sizes_below,
)
from structsam_export.tune.recipe import Recipe
from structsam_export.tune.record import Record
from structsam_export.tune.search import Limit, Measured, best_single_lever, choose, on_frontier
from structsam_export.tune.search import search as halve

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

_KNEE, _AS_USUAL = Limit(), RunOptions()
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_FEWEST = 3
_FEW = 2  # photos that every point is judged on
_MIXED_SIZES = 3  # largest sizes at which rates per block are tried
Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Levers:
    """What may be moved.

    Args:
        sizes: of the input in pixels; the trained one is always among them.
        precision: `fp32` (CPUs) or `fp16` (GPUs).
        int8, per_block: whether INT8, and rates per block, are tried.
    """

    sizes: tuple[int, ...] | None = None
    placements: tuple[str, ...] = PLACEMENTS
    rates: tuple[float, ...] = RATES
    precision: str = "fp32"
    int8: bool = True
    per_block: bool = True


@dataclass(frozen=True)
class TuneReport:
    """What was found.

    Args:
        chosen: what the limit asks for.
        single: the single lever (or stock) of least loss on the search photos that is no slower.
        found: all that was measured, fastest first; those on the frontier, the single levers and
            the chosen one have their loss on held-out photos.
        photos: how many the search saw, and how many it did not.
        files: what was written.
    """

    spec: ModelSpec
    recipe: Recipe
    limit: Limit
    chosen: Measured
    single: Measured | None
    found: tuple[Measured, ...]
    photos: tuple[int, int]
    backend: str
    files: tuple[Path, ...] = field(default=())

    @property
    def frontier(self) -> list[Measured]:
        """Those that no other beats on the search photos, fastest first."""
        return on_frontier(self.found)

    @property
    def beaten(self) -> bool:
        """Whether the single lever, no slower, loses less on photos that the search did not see."""
        if self.single is None or self.single.held_out is None or self.chosen.held_out is None:
            return False
        return self.single.held_out < self.chosen.held_out


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
    base: MergeConfig,
    levers: Levers = Levers(),
    limit: Limit = _KNEE,
    backend: str = "auto",
    options: RunOptions = _AS_USUAL,
    out: str | Path = "tune",
    progress: Progress = lambda title, done, total: None,
    say: Say = lambda text: None,
) -> TuneReport:
    """Search the cheapest encoder whose masks are good enough.

    Args:
        source: the model at its trained size.
        images: photos or folders of them, unlabelled; every third is held out.
        base: method and options of merging; rate and placement are searched.
        backend: that is to be fast; one that reads ONNX or engines.
        options: threads.
        say: told what is done, and what is reused of a search that was stopped.

    Raises:
        UserError: any input that cannot be used, a folder `out` of another search, or a limit that
            nothing keeps.
    """
    photos, folder = find_photos(images), Path(out)
    spec = source.spec
    if spec.trained_image_size is not None:
        raise UserError("`tune` searches the size of the input. Leave `image_size=` out")
    runtime = find_backend(backend)
    if runtime.needs_weights:
        raise UserError(f"tune exports encoders, and {runtime.name} runs none. Choose another one")
    if reason := None if runtime.needs_engine else runtime.why_unavailable():
        raise UserError(f"backend {runtime.name} cannot run here: {reason}")
    sizes = sizes_below(spec) if levers.sizes is None else sizes_below(spec, levers.sizes)
    points = grid(spec, base, sizes, levers.placements, levers.rates, levers.precision)
    described = source.describe()
    asked = {
        "format": 1,
        "model": described.to_dict(),
        "method": [base.method, dict(base.options)],
        "levers": vars(levers),
        "backend": [runtime.name, options.threads, hardware()["cpu"]],
        "photos": [[photo.name, photo.stat().st_size] for photo in photos],
    }
    record = Record(folder, asked)
    if record.reused:
        say(f"{folder}: {record.reused} results are there already; the rest is measured")
    land = _OnThisMachine(
        source, base, runtime.name, options, photos, folder, record, progress, say
    )
    if levers.per_block:
        points += land.mixes(levers, sizes[:_MIXED_SIZES])
    found = halve(land, points, limit, levers.int8, say)
    chosen = choose(found, limit)
    single = best_single_lever(found, chosen.ms)
    best = on_frontier(found)
    shown = [e.point for e in found if e in best or e == chosen or len(e.point.levers) < 2]
    unseen = land.loss(shown, "held_out")
    land.encoders.clear()
    found = [replace(each, held_out=unseen.get(each.point)) for each in found]
    by_point = {each.point: each for each in found}
    chosen, single = by_point[chosen.point], single and by_point[single.point]
    seen = len(land.photos["search"]), len(land.photos["held_out"])
    point = chosen.point
    recipe = Recipe(
        spec.name,
        point.config(base).to_dict(),
        point.image_size,
        point.precision,
        _calibration_folder(images, len(photos)) if "int8" in point.levers else None,
        {
            "sought": limit.text,
            "backend": runtime.name,
            "milliseconds": chosen.ms,
            "loss": {"search": chosen.loss, "held_out": chosen.held_out},
            "photos": {"search": seen[0], "held_out": seen[1]},
            "weights": described.title,
        },
    )
    return TuneReport(spec, recipe, limit, chosen, single, tuple(found), seen, runtime.name)


def _calibration_folder(images: Sequence[str | Path], photos: int) -> str | None:
    """Return the one folder of the search's photos, where it holds enough for an export."""
    folders = [Path(image).expanduser() for image in images]
    enough = len(folders) == 1 and folders[0].is_dir() and photos >= FEWEST_TO_CALIBRATE
    return str(folders[0].resolve()) if enough else None


def _is_the_reference(point: Point) -> bool:
    """Whether nothing is moved: it loses nothing by definition."""
    return not point.levers


class _OnThisMachine:
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

    def mixes(self, levers: Levers, sizes: Sequence[int | None]) -> list[Point]:
        """Return points with rates per block, at these sizes."""
        found = []
        rates = (0.0, *sorted(rate for rate in levers.rates if rate))
        for placement in (p for p in levers.placements if p in MIXED_PLACEMENTS):
            base = replace(self._base, placement=placement)
            possible = [r for r in rates if self._possible(Point(None, r, placement))]
            meter = LossMeter(self._judge.model(None).sam, self._spec)
            loss = block_losses(
                meter, base, possible, self.photos["few"], self._record, self._progress
            )
            for mix in mixed_rates(self._spec, base, possible, loss):
                mixed = (Point(size, mix, placement, levers.precision) for size in sizes)
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
                loss = self._judge.loss(model, model.embedding(config, path), path)
                self._record.keep(self._name(point, path), loss)
            return
        once = replace(self._options, keep_compiled=False)
        with find_backend(self._backend).runner(bundle, "encoder", once) as runner:
            for path in paths:
                embedding = runner.run({"image": model.photo(path).pixels})["image_embeddings"]
                loss = self._judge.loss(model, embedding, path)
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
