"""`manifest.json`: what it says of a bundle, its digest, and how it is read and written.

All names in a manifest are relative to the folder, so a bundle may be moved, renamed or copied to
another machine. A manifest carries a digest of itself and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.files import FileRecord, inside

#: 2: encoders have `plan_outputs`. Manifests of 1 are read, and have none.
SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
ENCODER_ONNX = "encoder.onnx"
DECODER_ONNX = "decoder.onnx"
#: Reports of `check`, .json and .html: on the bundle's own photos, and on others.
PARITY_STEM, PHOTOS_STEM = "parity", "parity-photos"
REFERENCE_FOLDER = "reference"
#: The encoder's first output, which the decoder takes.
IMAGE_EMBEDDINGS = "image_embeddings"
#: Of SAM-HQ: what the encoder also gives for the decoder, and the decoder's mask of the HQ token.
HQ_FEATURES, HQ_MASKS = "hq_features", "hq_masks"
#: The second input of a prompt-aware encoder.
PROMPT_BOX = "prompt_box"
#: Plan outputs of block I are called `slot_of_token.I` and `anchor_of_slot.I`.
PLAN_TENSORS = ("slot_of_token", "anchor_of_slot")
ENGINE_FOLDER = "engines"

PartName = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and numpy dtype name of one input or output. A `str` dimension is dynamic."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TensorSpec:
        """Read the form that `vars(spec)` has after a trip through JSON."""
        return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"])


@dataclass(frozen=True)
class Part:
    """One network of a bundle: the image encoder, or the prompt encoder with the mask decoder.

    Args:
        file: ONNX file, relative to the bundle.
        outputs: what every run gives.
        profile: for every dynamic dimension its (minimum, optimum, maximum).
        plan_outputs: what a run gives besides when it is asked: int32 `slot_of_token.I` [B', N]
            and `anchor_of_slot.I` [B', M] of every block I that plans. Empty where nothing merges,
            where the export was told so, and in bundles of schema 1.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    plan_outputs: tuple[TensorSpec, ...] = ()

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        """Every output of the graph, in its order."""
        return (*self.outputs, *self.plan_outputs)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Part:
        """Read the form that `to_dict` writes."""
        return Part(
            data["file"],
            tuple(map(TensorSpec.from_dict, data["inputs"])),
            tuple(map(TensorSpec.from_dict, data["outputs"])),
            {name: (low, opt, high) for name, (low, opt, high) in data["profile"].items()},
            tuple(map(TensorSpec.from_dict, data.get("plan_outputs", ()))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "file": self.file,
            "inputs": [vars(spec) for spec in self.inputs],
            "outputs": [vars(spec) for spec in self.outputs],
            "profile": self.profile,
            "plan_outputs": [vars(spec) for spec in self.plan_outputs],
        }


@dataclass(frozen=True)
class EngineEntry:
    """What the manifest records of one engine.

    Args:
        target: architecture such as `sm89`.
        file: relative to the bundle.
        fingerprint: all that the engine depends on; see `fingerprint`.
        attention: indices of the blocks whose attention is `fused`, and of those where it is
            `separate` kernels; empty where that is not known.
    """

    backend: str
    part: PartName
    target: str
    file: str
    size: int
    sha256: str
    fingerprint: dict[str, Any]
    build_seconds: float
    attention: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> EngineEntry:
        """Read the form that `vars(entry)` has after a trip through JSON."""
        known = {"attention": {}} | dict(data)
        return EngineEntry(**{f.name: known[f.name] for f in fields(EngineEntry)})

    def damage(self, bundle: Path, digest: bool | Literal["once"] = True) -> str | None:
        """Say how the file differs from the record, or None; see `FileRecord.damage`."""
        record = FileRecord(self.size, self.sha256)
        damage = record.damage(inside(bundle, self.file), digest)
        return damage and f"{self.file} {damage}"


@dataclass(frozen=True)
class ParityVerdict:
    """How the latest check on the bundle's own photos ended.

    Args:
        verdict: in words.
        backends: name -> `passed`, `failed` or `not run`.
    """

    passed: bool
    verdict: str
    backends: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ParityVerdict:
        """Read the form that `vars(verdict)` has after a trip through JSON."""
        return ParityVerdict(data["passed"], data["verdict"], data.get("backends", {}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest of a bundle's folder.

    Raises:
        UserError: none there, damaged, changed after it was written, of a newer schema, or one
            that names a file outside of the folder.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a bundle: it has no {MANIFEST}. "
            "Give the folder that `structsam-export export` printed"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). Export the bundle again") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{file} is not a structsam manifest. Export the bundle again")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{folder} has manifest schema {version}, and this structsam reads up to "
            f"{SCHEMA_VERSION}. Update it with `pip install --upgrade structsam`"
        )
    if manifest.get("digest") != _digest(manifest):
        raise UserError(f"{file} was changed after it was written. Export the bundle again")
    for name in _named_files(manifest):
        inside(folder, name)
    return dict(manifest)


def _named_files(manifest: Mapping[str, Any]) -> list[Any]:
    """Everything in a manifest that is opened as a file of the folder, or becomes one's name."""
    holders = [manifest[part] for part in get_args(PartName) if part in manifest]
    holders += manifest.get("engines", [])
    names = [*manifest.get("files", {}), *(holder["file"] for holder in holders)]
    return [*names, *manifest.get("reference_images", []), manifest["name"]]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Put a fresh digest into `manifest` and write it, atomically."""
    manifest["digest"] = _digest(manifest)
    atomic.write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _digest(manifest: Mapping[str, Any]) -> str:
    said = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
