"""`segment`: masks of many photos into one folder; called again, it goes on where it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bulk.coco import ANNOTATIONS, NOTES, PROBLEMS, merge_parts
from structsam_export.bulk.parts import Done, PartWriter
from structsam_export.bulk.pipeline import Stage, pipelined
from structsam_export.bulk.source import Source, read_source
from structsam_export.bulk.task import OBJECT, Task
from structsam_export.bulk.work import Wanted, Work
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.everything.coco_masks import load_mask_tools
from structsam_export.runtimes import find_backend, refuse_unread

RUN_JSON = "run.json"
_LOCK = ".segment.lock"

#: Told: photos that are done, all photos.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a run left.

    Args:
        photos: in `annotations.json`.
        annotations: their masks.
        problems: photos in `problems.csv`, which gave no masks.
        noted: photos in `notes.csv`, whose masks may be poor or lack some.
        done_now: photos of this run, broken ones included; the others were there before.
        seconds: that it took, without opening the bundle.
    """

    annotations_file: Path
    problems_file: Path
    notes_file: Path
    photos: int
    annotations: int
    problems: int
    noted: int
    done_now: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in vars(self).items()}


def segment(
    bundle: Bundle,
    source: str | Path,
    out: str | Path,
    wanted: Wanted,
    *,
    photos: str | Path | None = None,
    backend: str = "auto",
    readers: int = 2,
    ray: str | None = None,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> Summary:
    """Find masks in all photos of a source, and write `annotations.json` in COCO's form.

    Photos are read, encoded, decoded and written beside each other, a few at a time in memory. What
    is done is kept in `parts/`, photo by photo, so that the same call goes on after a crash; broken
    photos are named in `problems.csv`, and are tried again by the next call. What a user should
    know of photos that have masks (dark ones, boxes outside) stands in `notes.csv`.

    Args:
        source: see `read_source`.
        out: a new folder, or that of an earlier call with the same arguments.
        photos: the folder that names in a source's file are relative to.
        readers: threads that read photos.
        ray: do it on Ray: `local`, `auto` or an address; see `run_on_ray`.
        options: further options of `Predictor`.

    Raises:
        UserError: no source, no prompts, another run is at work in `out` or was begun there with
            other arguments, the disk is full.
    """
    folder = Path(out)
    listed = read_source(source, None if photos is None else Path(photos), folder)
    _check(bundle, listed, wanted)
    if checkpoint := options.get("checkpoint"):
        refuse_unread(checkpoint, find_backend(backend, bundle))
    run = _facts(bundle, source, photos, listed, wanted)
    if options.get("hq_token_only"):
        run["hq_token_only"] = True
    with _only_here(folder):
        _begin(folder, run)
        done = Done(folder)
        todo = [task for task in listed.tasks if task.name not in done]
        before, total = len(listed.tasks) - len(todo), len(listed.tasks)
        del done
        start = time.perf_counter()
        if todo and ray is not None:
            from structsam_export.bulk.ray_job import run_on_ray

            how = {"backend": backend, "readers": readers, **options}
            run_on_ray(bundle.path, todo, folder, wanted, address=ray, **how)
        elif todo:
            told = partial(_tell, progress, before, total)
            _run_here(bundle, todo, folder, wanted, backend, readers, told, options)
        ids = {t.name: listed.image_ids.get(t.name, n) for n, t in enumerate(listed.tasks, 1)}
        categories = (OBJECT,) if wanted.everything else listed.categories
        counts = merge_parts(folder, ids, categories, {"description": "masks", **run})
    seconds = time.perf_counter() - start
    files = folder / ANNOTATIONS, folder / PROBLEMS, folder / NOTES
    return Summary(*files, *counts, done_now=len(todo), seconds=seconds)


def _tell(progress: Progress, before: int, total: int, count: int) -> None:
    progress(before + count, total)


def _run_here(
    bundle: Bundle,
    todo: Sequence[Task],
    folder: Path,
    wanted: Wanted,
    backend: str,
    readers: int,
    told: Callable[[int], None],
    options: dict[str, Any],
) -> None:
    """Do the tasks in this process; `told` hears how many are done."""
    with (
        bundle.predictor(backend, **options) as encoding,
        bundle.predictor(backend, **options) as decoding,
    ):
        work = Work(bundle, wanted, encoding, decoding, folder)
        work.open()
        stages = [Stage(work.read, readers), Stage(work.encode), Stage(work.decode)]
        told(0)
        part = PartWriter(folder)
        with closing(part), closing(pipelined(todo, stages, stop=work.stop)) as items:
            for count, item in enumerate(items, 1):
                part.append(work.write(item))
                told(count)


def _check(bundle: Bundle, source: Source, wanted: Wanted) -> None:
    load_mask_tools()
    if wanted.everything:
        wanted.everything.require_packages()
    elif not (source.has_prompts or wanted.embeddings):
        raise UserError(
            "the source names photos, and no points or boxes. Add `everything=True`, or give a "
            "file with prompts"
        )
    crops = wanted.everything is not None and wanted.everything.crop_n_layers > 0
    if wanted.embeddings and (bundle.takes_box or crops):
        whose = "one crop" if crops else "one box, as this bundle is prompt-aware"
        raise UserError(f"an embedding belongs to {whose}. Leave out `save_embeddings=True`")


def _facts(
    bundle: Bundle, source: str | Path, photos: str | Path | None, listed: Source, wanted: Wanted
) -> dict[str, Any]:
    """Say what the result depends on, ready for JSON."""
    encoder, decoder = (bundle.files[bundle.part(part).file].sha256 for part in _PARTS)
    return {
        "bundle": bundle.name,
        "encoder": encoder,
        "decoder": decoder,
        "random_weights": bundle.has_random_weights,
        "source": str(source),
        "photos": None if photos is None else str(photos),
        "source_sha256": listed.digest,
        **wanted.to_dict(),
    }


_PARTS: tuple[Any, ...] = ("encoder", "decoder")


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Hold the folder against other runs; the lock goes with the process."""
    from filelock import FileLock, Timeout

    atomic.require_writable(folder)
    try:
        if folder.exists() and not (folder / RUN_JSON).exists() and _other_files(folder):
            raise UserError(
                f"{folder} holds other files. Choose a new or an empty folder with `out=`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another `structsam-export segment` is at work in {folder}. Wait for it, or choose "
            "another folder with `out=`"
        ) from None
    except OSError as error:
        raise atomic.as_user_error(error, folder) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _other_files(folder: Path) -> bool:
    return any(
        not path.name.startswith(f".{RUN_JSON}") and path.name != _LOCK for path in folder.iterdir()
    )


def _begin(folder: Path, run: dict[str, Any]) -> None:
    """Write what the run depends on, or compare it with what an earlier one wrote."""
    file = folder / RUN_JSON
    if not file.exists():
        atomic.write_text(file, json.dumps(run, indent=2) + "\n")
        return
    try:
        earlier = _flat(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Choose a new folder with `out=`"
        ) from None
    now = _flat(json.loads(json.dumps(run)))
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise UserError(
                f"{folder} was begun with {name} = {earlier.get(name)}, and now it is "
                f"{now.get(name)}. Give the same to go on, or choose another folder with `out=`"
            )


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    inner = facts.get("everything") or {}
    flat = {f"everything's {name}": value for name, value in inner.items()}
    return {**facts, **flat, "everything": bool(inner)}
