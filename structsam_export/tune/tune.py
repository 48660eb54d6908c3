"""`structsam-export tune`: the frontier of latency and loss on the user's own photos.

Every result is kept as soon as it is there, so that a search that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from structsam.errors import UserError
from structsam_export.bundle.alone import alone
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.machine import hardware
from structsam_export.predict.calibration_photos import FEWEST as FEWEST_TO_CALIBRATE
from structsam_export.predict.image_file import PHOTO_SUFFIXES
from structsam_export.runtimes import RunOptions, find_backend
from structsam_export.tune.block_mixes import Progress
from structsam_export.tune.on_this_machine import OnThisMachine, Say
from structsam_export.tune.points import (
    RATES,
    USUAL_PLACEMENTS,
    grid,
    sizes_below,
)
from structsam_export.tune.recipe import Recipe
from structsam_export.tune.record import Record, require_own
from structsam_export.tune.search import (
    Limit,
    Measured,
    best_single_lever,
    choose,
    on_frontier,
    prefer_single_lever,
)
from structsam_export.tune.search import search as halve

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

_KNEE, _AS_USUAL = Limit(), RunOptions()
_FEWEST = 3
_MIXED_SIZES = 3  # largest sizes at which rates per block are tried


@dataclass(frozen=True)
class Levers:
    """What may be moved.

    Args:
        sizes: of the input in pixels; the trained one is always among them.
        precision: `fp32` (CPUs) or `fp16` (GPUs).
        int8, per_block: whether INT8, and rates per block, are tried.
        methods: tried beside that of `base`, with their usual options.
    """

    sizes: tuple[int, ...] | None = None
    placements: tuple[str, ...] = USUAL_PLACEMENTS
    rates: tuple[float, ...] = RATES
    precision: str = "fp32"
    int8: bool = True
    per_block: bool = True
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuneReport:
    """What was found.

    Args:
        chosen: what the limit asks for.
        passed_over: what the search had chosen before the single lever, which lost less on photos
            that the search did not see.
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
    passed_over: Measured | None = None
    files: tuple[Path, ...] = field(default=())

    @property
    def frontier(self) -> list[Measured]:
        """Those that no other beats on the search photos, fastest first."""
        return on_frontier(self.found)


def find_photos(images: Sequence[str | Path]) -> list[Path]:
    """List photos: files as they are, folders with what lies right inside.

    Raises:
        UserError: a path that does not exist, or fewer than three photos.
    """
    found: list[Path] = []
    for path in (Path(image).expanduser() for image in images):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES)
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
        UserError: any input that cannot be used, a folder `out` of another search or with one at
            work, or a limit that nothing keeps.
    """
    photos, folder = find_photos(images), Path(out)
    spec = source.spec
    spec.require_decoder("`tune` judges masks")
    if spec.trained_image_size is not None:
        raise UserError("`tune` searches the size of the input. Leave `image_size=` out")
    runtime = find_backend(backend)
    if runtime.needs_weights:
        raise UserError(f"tune exports encoders, and {runtime.name} runs none. Choose another one")
    if reason := None if runtime.needs_engine else runtime.why_unavailable():
        raise UserError(f"backend {runtime.name} cannot run here: {reason}")
    sizes = sizes_below(spec) if levers.sizes is None else sizes_below(spec, levers.sizes)
    points = grid(
        spec, base, sizes, levers.placements, levers.rates, levers.precision, levers.methods
    )
    described = source.describe()
    asked = {
        "format": 2,
        "model": described.to_dict(),
        "method": [base.method, dict(base.options)],
        "levers": vars(levers),
        "backend": [runtime.name, options.threads, hardware()["cpu"]],
        "photos": [[photo.name, photo.stat().st_size] for photo in photos],
    }
    require_own(folder, asked)  # refuses another folder before anything is written
    with alone(folder, "search"):
        record = Record(folder, asked)
        if record.reused:
            say(f"{folder}: {record.reused} results are there already; the rest is measured")
        land = OnThisMachine(
            source, base, runtime.name, options, photos, folder, record, progress, say
        )
        if levers.per_block:
            points += land.mixes(
                levers.rates, levers.placements, levers.precision, sizes[:_MIXED_SIZES]
            )
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
    passed_over = None
    if single is not None and prefer_single_lever(chosen, single, limit):
        passed_over, chosen = chosen, single
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
    return TuneReport(
        spec, recipe, limit, chosen, single, tuple(found), seen, runtime.name, passed_over
    )


def _calibration_folder(images: Sequence[str | Path], photos: int) -> str | None:
    """Return the one folder of the search's photos, where it holds enough for an export."""
    folders = [Path(image).expanduser() for image in images]
    enough = len(folders) == 1 and folders[0].is_dir() and photos >= FEWEST_TO_CALIBRATE
    return str(folders[0].resolve()) if enough else None
