"""Say whether the engine that a bundle records is the wanted one, and why not.

An engine is current when its file is the recorded one and its fingerprint (the ONNX it was built
from, the backend's version, the GPU, the settings) equals the wanted fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle.files import FileRecord
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import ENGINE_FOLDER, EngineEntry, PartName

MAX_OPTIMIZATION_LEVEL = 5


@dataclass(frozen=True)
class BuildSettings:
    """What a user may choose when an engine is built; None leaves it to TensorRT.

    Args:
        workspace_mb: MiB of device memory that one layer may use as scratch space.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
        tactic_memory_mb: MiB of device memory that trying one kernel may take.

    Raises:
        UserError: a value out of range.
    """

    workspace_mb: int | None = None
    optimization_level: int | None = None
    tactic_memory_mb: int | None = None

    def __post_init__(self) -> None:
        for name in ("workspace_mb", "tactic_memory_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, and must be at least 1 (MiB)")
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
            raise UserError(
                f"optimization_level is {level}, and must be 0 to {MAX_OPTIMIZATION_LEVEL}"
            )

    @staticmethod
    def of(entry: EngineEntry) -> BuildSettings:
        """Return the settings with which a recorded engine was built."""
        names = asdict(_DEFAULTS)
        return BuildSettings(**{name: entry.fingerprint[name] for name in names})


_DEFAULTS = BuildSettings()


def fingerprint(
    bundle: Bundle,
    backend: str,
    part: PartName,
    target: str,
    version: str,
    gpu: str | None,
    settings: BuildSettings = _DEFAULTS,
) -> dict[str, Any]:
    """Return all that an engine depends on, ready for JSON.

    Args:
        version: of the TensorRT that builds or runs it; engines fit exactly one.
        gpu: the device's name where engines are tuned on it, None for ahead-of-time engines.
    """
    contract, files = bundle.part(part), bundle.files
    data = files.get(f"{contract.file}.data")
    return {
        "onnx_sha256": files[contract.file].sha256,
        "onnx_data_sha256": data and data.sha256,
        "backend": backend,
        "backend_version": version,
        "target": target,
        "gpu": gpu,
        "precision": bundle.precision,
        "profile": {name: list(sizes) for name, sizes in contract.profile.items()},
        **asdict(settings),
    }


def engine_file(backend: str, part: PartName, target: str) -> str:
    """Return the name of an engine, relative to the bundle."""
    return f"{ENGINE_FOLDER}/{part}.{backend}.{target}.engine"


def find_entry(bundle: Bundle, backend: str, part: PartName, target: str) -> EngineEntry | None:
    """Return what the manifest records of an engine, or None."""
    for entry in bundle.engines:
        if (entry.backend, entry.part, entry.target) == (backend, part, target):
            return entry
    return None


def record_engine(
    bundle: Bundle,
    backend: str,
    part: PartName,
    target: str,
    wanted: Mapping[str, Any],
    build_seconds: float,
    attention: Mapping[str, list[int]],
) -> EngineEntry:
    """Put a finished engine file into the manifest, save it, and return the new entry."""
    name = engine_file(backend, part, target)
    found, seconds = FileRecord.of(bundle.path / name), round(build_seconds, 3)
    entry = EngineEntry(
        backend,
        part,
        target,
        name,
        found.size,
        found.sha256,
        dict(wanted),
        seconds,
        dict(attention),
    )
    with bundle.manifest_to_change() as manifest:
        others = [other for other in manifest.get("engines", []) if other["file"] != name]
        manifest["engines"] = [*others, vars(entry)]
    return entry


def engine_status(
    bundle: Bundle,
    backend: str,
    part: PartName,
    target: str,
    wanted: Mapping[str, Any],
    digest: bool = True,
) -> tuple[bool, str]:
    """Return whether the recorded engine is the wanted one, and the reason in words.

    Args:
        wanted: what `fingerprint` returns here and now.
        digest: also compare the file's SHA-256, which reads all of it; the size always is.
    """
    entry = find_entry(bundle, backend, part, target)
    if entry is None:
        return False, f"there is no {part} engine of {backend} for {target} yet"
    if damage := entry.damage(bundle.path, digest):
        return False, damage
    if change := differences(entry.fingerprint, wanted):
        return False, f"the {part} engine for {target} is stale: {change}"
    return True, f"the {part} engine for {target} is current"


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Say in words what differs between two fingerprints; None when nothing does."""
    for key in [*wanted, *(k for k in recorded if k not in wanted)]:
        if recorded.get(key) != wanted.get(key):
            return f"{key} changed: {recorded.get(key)!r} -> {wanted.get(key)!r}"
    return None
