"""`evaluation.json`: what a folder of results was asked, so that nothing else is mixed into it."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.machine import hardware, tool_versions

if TYPE_CHECKING:
    from structsam.evaluation.evaluate import Setting

RESULTS = "evaluation.json"


def shared_facts(model: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Say what all runs of a folder must share."""
    from structsam.evaluation.read_results import FORMAT

    dataset, image_ids = setting.dataset, setting.image_ids
    checkpoint, source = model["checkpoint"], model["weights"]
    return {
        "format": FORMAT,
        "model": {
            "name": model["name"],
            "weights": checkpoint["file"] if source == "checkpoint" else source,
            "sha256": checkpoint["sha256"] if checkpoint else None,
            "seed": model["seed"],
        },
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "root": str(dataset.root),
            "images": len(image_ids),
            "ids_sha256": _digest(image_ids),
        },
        "protocol": {
            "name": setting.protocol.name,
            "title": setting.protocol.title,
            **setting.prompting.to_dict(),
            "max_objects": setting.max_objects,
            "smallest": setting.smallest,
        },
        "metrics": [metric.name for metric in setting.metrics],
    }


def open_record(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Read the folder's record, or begin one.

    Raises:
        UserError: the folder holds something else.
    """
    import structsam
    from structsam.evaluation.read_results import read_facts

    command = shlex.join(["structsam-export", *sys.argv[1:]])
    fresh = {
        "structsam": structsam.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": {**hardware(), "versions": tool_versions()},
        "runs": [],
        "problems": [],
        "left_out": [],
    }
    path = out / RESULTS
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(_visible(out))):
            raise UserError(
                f"{out} exists and is no folder of results. Choose another `out=`, or remove it"
            )
        return {**facts, **fresh}
    record = read_facts(out)
    moved = {**facts, "dataset": {**facts["dataset"], "root": record["dataset"]["root"]}}
    if changed := _differences(record, moved):
        raise UserError(
            f"{out} holds another evaluation: {changed}. Choose another `out=`, or remove that "
            "folder"
        )
    commands = record["command"].split("\n")
    if command not in commands:
        commands.append(command)
    return {**record, "command": "\n".join(commands), "machine": fresh["machine"]}


def add_runs(record: dict[str, Any], runs: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Put entries of runs into the record; a run that is there must be the same one.

    Raises:
        UserError: two runs of one name, or a run there under that name is another.
    """
    names = [run["name"] for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs are named {twice}. Evaluate them into different folders")
    known = {run["name"]: run for run in record["runs"]}
    for run in runs:
        own = {key: value for key, value in run.items() if key != "complete"}
        there = known.get(run["name"])
        if there is not None and (changed := _differences(there, own)):
            raise UserError(
                f"{out} holds another run named {run['name']}: {changed}. Choose another `out=`"
            )
        known[run["name"]] = {**run, "machine": record["machine"]}
    record["runs"] = list(known.values())


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Name what differs: `protocol.smallest 0.001 (now 0.01)`."""
    found = []
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            found.append(_differences(old[key], value, f"{prefix}{key}."))
        elif old.get(key) != json.loads(json.dumps(value)):
            found.append(f"{prefix}{key} {old.get(key)!r} (now {value!r})")
    return ", ".join(filter(None, found))


def _visible(folder: Path) -> list[Path]:
    """What is in a folder beside leftovers of interrupted writing."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write `evaluation.json`, atomically."""
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / RESULTS, json.dumps(record, indent=1) + "\n")


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
