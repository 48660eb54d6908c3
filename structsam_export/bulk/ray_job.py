"""The same work on Ray Data: workers that open the bundle once, and Ray's own checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bulk.parts import RAY_PARTS
from structsam_export.bulk.pipeline import Stage, pipelined
from structsam_export.bulk.task import Task
from structsam_export.bulk.work import Wanted, Work
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import open_bundle

LOCAL = "local"
#: Photos that a worker is given at once; their steps overlap.
_BATCH = 16
_CORES = 2
#: Of the tasks that read the list and write lines: workers may hold every core meanwhile.
_NO_CORE = {"num_cpus": 0}


def run_on_ray(
    bundle: Path,
    tasks: Sequence[Task],
    out: Path,
    wanted: Wanted,
    *,
    address: str = LOCAL,
    backend: str = "auto",
    readers: int = 2,
    threads: int | None = None,
    **options: Any,
) -> None:
    """Do the tasks on a cluster: read the list -> a pool of workers -> write into `parts/ray`.

    Bundle, photos and `out` lie on storage that all machines see under the same path. There is a
    worker for each GPU, or for every `threads` cores (2) where there is none. A worker that
    dies is started again; after a crash of all, Ray's checkpoint says which photos are done.

    Args:
        address: `local` starts Ray here, `auto` finds a running cluster, or its address.

    Raises:
        UserError: Ray is not installed, or no cluster is there.
    """
    ray, checkpoint_config = _load_ray()
    listed = out / "ray" / "tasks.jsonl"
    rows = ({"name": task.name, "task": json.dumps(_told(task))} for task in tasks)
    atomic.write_text(listed, "".join(json.dumps(row) + "\n" for row in rows))
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.checkpoint_config = checkpoint_config(
            id_column="name",
            checkpoint_path=str((out / "ray" / "checkpoint").absolute()),
            delete_checkpoint_on_success=True,
        )
        have = ray.cluster_resources()
        gpus, cores = int(have.get("GPU", 0)), threads or _CORES
        share: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": cores}
        workers = gpus or max(1, int(have.get("CPU", 1)) // cores)
        done = ray.data.read_json(str(listed.absolute()), lines=True, **_NO_CORE).map_batches(
            Worker,
            fn_constructor_args=(bundle.absolute(), wanted, out.absolute(), readers),
            fn_constructor_kwargs={"backend": backend, "threads": cores, **options},
            batch_size=_BATCH,
            concurrency=min(workers, -(-len(tasks) // _BATCH)),
            **share,
        )
        done.write_json(str((out / RAY_PARTS).absolute()), ray_remote_args=_NO_CORE)
    finally:
        if started:
            ray.shutdown()
    shutil.rmtree(out / "ray", ignore_errors=True)


class Worker:
    """One process of the pool: it keeps both networks open."""

    def __init__(
        self, bundle: Path, wanted: Wanted, out: Path, readers: int, **options: Any
    ) -> None:
        opened, self._session = open_bundle(bundle), ExitStack()
        both = [self._session.enter_context(opened.predictor(**options)) for _ in range(2)]
        self._work = Work(opened, wanted, both[0], both[1], out)
        self._work.open()
        self._readers = readers

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Do some tasks; return a line for each."""
        work = self._work
        tasks = [_task(json.loads(text)) for text in batch["task"]]
        stages = [Stage(work.read, self._readers), Stage(work.encode), Stage(work.decode)]
        entries = [work.write(item) for item in pipelined(tasks, stages)]
        return {
            "name": np.array([entry["name"] for entry in entries], object),
            "line": np.array([json.dumps(entry) for entry in entries], object),
        }


def _told(task: Task) -> dict[str, Any]:
    return {**vars(task), "path": str(task.path.absolute())}


def _task(told: dict[str, Any]) -> Task:
    points, boxes = ([tuple(each) for each in told[name]] for name in ("points", "boxes"))
    return Task(told["name"], Path(told["path"]), points, boxes, told["labels"])


def _load_ray() -> tuple[Any, Any]:
    try:
        import ray
        import ray.data
        from ray.data.checkpoint import CheckpointConfig
    except ImportError as error:
        raise UserError(
            f"`ray=` needs Ray Data ({error}). Install it with `pip install 'structsam[ray]'`"
        ) from error
    return ray, CheckpointConfig


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no Ray cluster at {address!r} ({reason}). Start one (docs/bulk.md), or use "
            "`ray='local'`"
        ) from None
