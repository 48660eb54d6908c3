"""Which files serve a network: the ONNX file of the bundle, or its TensorRT plans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from structsam.errors import UserError
from structsam_export.bundle.engine_entries import BuildSettings, engine_status, fingerprint
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import EngineEntry, PartName

_TENSORRT = "tensorrt"


@dataclass(frozen=True)
class NetworkFiles:
    """What lies in the version folder of a network, and what its config says of it.

    Args:
        files: name there -> file of the bundle.
        default: the one that is opened where `by_capability` has no other.
        by_capability: compute capability, such as `8.9` -> name of the plan for it.
        built_with: version of the TensorRT that built the plans.
    """

    backend: str
    files: dict[str, Path]
    default: str
    by_capability: dict[str, str] = field(default_factory=dict)
    built_with: str | None = None


def network_files(bundle: Bundle, backend: str) -> dict[PartName, NetworkFiles]:
    """Return the files of both networks.

    Args:
        backend: `onnxruntime`, `tensorrt`, or `auto`: TensorRT where the bundle has its plans.

    Raises:
        UserError: TensorRT was asked for and a plan is missing, altered or stale.
    """
    parts = get_args(PartName)
    plans = {part: _plans(bundle, part) for part in parts}
    if backend == "onnxruntime" or (backend == "auto" and not all(plans.values())):
        return {part: _onnx(bundle, part) for part in parts}
    for part, entries in plans.items():
        if not entries:
            others = {e.backend for e in bundle.engines if e.part == part}
            beside = f", only engines of {', '.join(sorted(others))}" if others else ""
            raise UserError(
                f"bundle {bundle.path} has no TensorRT plan of the {part}{beside}. Build one with "
                f"`structsam-export build {bundle.path} --backend tensorrt`, with the TensorRT of "
                "the container that serves it, or choose `backend=onnxruntime`"
            )
    for entry in (entry for entries in plans.values() for entry in entries):
        _require_current(bundle, entry)
    found = {part: _tensorrt(bundle, plans[part]) for part in parts}
    versions = {files.built_with for files in found.values()}
    if len(versions) > 1:
        raise UserError(
            f"the plans of {bundle.path} were built with TensorRT {_and(versions)}, and one server "
            f"has one. Build them again with `structsam-export build {bundle.path} --backend "
            "tensorrt`"
        )
    return found


def _onnx(bundle: Bundle, part: PartName) -> NetworkFiles:
    file = bundle.part(part).file
    names = [name for name in (file, f"{file}.data") if name in bundle.files or name == file]
    return NetworkFiles(
        "onnxruntime", {Path(name).name: bundle.file(name) for name in names}, Path(file).name
    )


def _plans(bundle: Bundle, part: PartName) -> list[EngineEntry]:
    return [e for e in bundle.engines if (e.backend, e.part) == (_TENSORRT, part)]


def _tensorrt(bundle: Bundle, entries: Sequence[EngineEntry]) -> NetworkFiles:
    """Take one plan for every compute capability; the first stands in for GPUs without one."""
    versions = {str(entry.fingerprint["backend_version"]) for entry in entries}
    if len(versions) > 1:
        raise UserError(
            f"the plans of the {entries[0].part} were built with TensorRT {_and(versions)}, and "
            f"one server has one. Build them again with `structsam-export build {bundle.path} "
            "--backend tensorrt`"
        )
    files = {f"model.{entry.target}.plan": bundle.file(entry.file) for entry in entries}
    return NetworkFiles(
        _TENSORRT,
        files,
        next(iter(files)),
        {_capability(e.target): f"model.{e.target}.plan" for e in entries},
        versions.pop(),
    )


def _require_current(bundle: Bundle, entry: EngineEntry) -> None:
    """Refuse a plan whose file or whose network is another by now. Raises `UserError`."""
    version, gpu = (entry.fingerprint.get(key) for key in ("backend_version", "gpu"))
    wanted = fingerprint(
        bundle,
        entry.backend,
        entry.part,
        entry.target,
        str(version),
        gpu,
        BuildSettings.of(entry),
    )
    current, reason = engine_status(bundle, entry.backend, entry.part, entry.target, wanted)
    if not current:
        raise UserError(
            f"bundle {bundle.path}: {reason}. Build it again with `structsam-export build "
            f"{bundle.path} --backend tensorrt`"
        )


def _capability(target: str) -> str:
    """`sm89` -> `8.9`, `sm120` -> `12.0`, as Triton names compute capabilities."""
    found = re.fullmatch(r"sm(\d+)(\d)", target)
    if not found:
        raise UserError(f"the plan for {target!r} names no GPU generation such as sm89")
    return f"{found[1]}.{found[2]}"


def _and(versions: set[str | None] | set[str]) -> str:
    return " and ".join(sorted(map(str, versions)))
