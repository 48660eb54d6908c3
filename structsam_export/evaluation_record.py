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
from structsam_export import atomic
from structsam_export.machine import hardware, tool_versions

if TYPE_CHECKING:
    from structsam.evaluation.evaluate import Setting

RESULTS = "evaluation.json"


def shared_facts(
    model: Mapping[str, Any], setting: Setting, image_ids: Sequence[str]
) -> dict[str, Any]:
    """Say what all runs of a folder must share."""
    from structsam.evaluation.read_results import FORMAT

    dataset = setting.dataset
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

    machine = hardware()
    fresh = {
        "structsam": structsam.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["structsam-export", *sys.argv[1:]]),
        "machine": {**machine, "versions": tool_versions()},
        "runs": [],
        "problems": [],
        "left_out": [],
    }
    path = out / RESULTS
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} exists and is no folder of results. Choose another --out, or remove it"
            )
        return {**facts, **fresh}
    record = read_facts(out)
    for key, value in facts.items():
        if key == "dataset":
            value = {**value, "root": record[key]["root"]}  # it may have moved
        if record.get(key) != value:
            raise UserError(
                f"{out} holds an evaluation with {key} {_short(record.get(key))}, and this one has "
                f"{_short(value)}. Choose another --out, or remove that folder"
            )
    return {**record, "command": fresh["command"], "machine": fresh["machine"]}


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write `evaluation.json`, atomically."""
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / RESULTS, json.dumps(record, indent=1) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else text[:157] + "..."


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
