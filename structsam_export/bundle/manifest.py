"""The bundle: one folder with everything that runs, and `manifest.json`, which says what it is.

All names in a manifest are relative to the folder, so a bundle may be moved, renamed or copied to
another machine. A manifest carries a digest of itself and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from structsam.errors import UserError
from structsam_export.bundle import atomic

if TYPE_CHECKING:
    from structsam_export.predict.predictor import Predictor

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ENCODER_ONNX = "encoder.onnx"
DECODER_ONNX = "decoder.onnx"
#: Reports of `check`, .json and .html: on the bundle's own photos, and on others.
PARITY_STEM, PHOTOS_STEM = "parity", "parity-photos"
REFERENCE_FOLDER = "reference"
#: The second input of a prompt-aware encoder.
PROMPT_BOX = "prompt_box"
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
        profile: for every dynamic dimension its (minimum, optimum, maximum).
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Part:
        """Read the form that `to_dict` writes."""
        return Part(
            data["file"],
            tuple(map(TensorSpec.from_dict, data["inputs"])),
            tuple(map(TensorSpec.from_dict, data["outputs"])),
            {name: (low, opt, high) for name, (low, opt, high) in data["profile"].items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "file": self.file,
            "inputs": [vars(spec) for spec in self.inputs],
            "outputs": [vars(spec) for spec in self.outputs],
            "profile": self.profile,
        }


@dataclass
class Bundle:
    """An opened bundle: its folder and its manifest (see the README for the fields)."""

    path: Path
    manifest: dict[str, Any]

    def part(self, name: PartName) -> Part:
        """Return the contract of the encoder or the decoder."""
        return Part.from_dict(self.manifest[name])

    def onnx_path(self, name: PartName) -> Path:
        """Return the ONNX file of the encoder or the decoder."""
        return self.path / self.part(name).file

    @property
    def name(self) -> str:
        """The name that the bundle was exported under; its folder may be called otherwise now."""
        return str(self.manifest["name"])

    @property
    def precision(self) -> str:
        """`fp32` or `fp16`."""
        return str(self.manifest["precision"]["name"])

    @property
    def has_random_weights(self) -> bool:
        """Whether masks of this bundle carry no meaning."""
        return bool(self.manifest["model"]["weights"] == "random")

    @property
    def needs_checkpoint(self) -> bool:
        """Whether torch needs the weight file again: it is neither embedded nor random."""
        return bool(self.manifest["model"]["weights"] == "checkpoint")

    @property
    def takes_box(self) -> bool:
        """Whether the encoder takes a prompt box, so that an embedding belongs to one prompt."""
        return any(spec.name == PROMPT_BOX for spec in self.part("encoder").inputs)

    def predictor(self, backend: str = "auto", **options: Any) -> Predictor:
        """Open the bundle for prediction; see `structsam_export.predict.predictor.Predictor`."""
        from structsam_export.predict.predictor import Predictor

        return Predictor(self, backend=backend, **options)

    def save_manifest(self) -> None:
        """Write the manifest with a fresh digest, atomically."""
        self.manifest.pop("digest", None)
        self.manifest["digest"] = _digest(self.manifest)
        atomic.write_text(self.path / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def update_manifest(self, **changes: Any) -> None:
        """Change top-level entries and save, keeping what another process wrote meanwhile."""
        try:
            current = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            self.manifest.clear()
            self.manifest.update(current)
        except (OSError, ValueError):
            pass  # not written yet
        self.manifest.update(changes)
        self.save_manifest()

    def record_file(self, name: str) -> None:
        """Put size and SHA-256 of the file `name` (relative) into the manifest."""
        self.manifest.setdefault("files", {})[name] = {
            "size": (self.path / name).stat().st_size,
            "sha256": sha256_of(self.path / name),
        }


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle folder.

    Args:
        verify: also compare the SHA-256 of every file with the manifest.

    Raises:
        UserError: no such folder, no or damaged manifest, newer schema, missing or altered file.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "it is a file, and a folder is needed" if folder.exists() else "no such folder"
        raise UserError(f"no bundle at {folder}: {what}. Make one with `structsam-export export`")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a bundle: it has no {MANIFEST}. "
            "Give the folder that `structsam-export export` printed"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / MANIFEST} cannot be read ({error}). Export the bundle again"
        ) from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{folder / MANIFEST} is not a structsam manifest. Export the bundle again")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{folder} has manifest schema {version}, and this structsam reads up to "
            f"{SCHEMA_VERSION}. Update it with `pip install --upgrade structsam`"
        )
    if manifest.get("digest") != _digest({k: v for k, v in manifest.items() if k != "digest"}):
        raise UserError(
            f"{folder / MANIFEST} was changed after it was written. Export the bundle again"
        )
    bundle = Bundle(folder, manifest)
    if verify:
        _verify_files(bundle)
    return bundle


def _verify_files(bundle: Bundle) -> None:
    for name, expected in bundle.manifest["files"].items():
        file = bundle.path / name
        if not file.is_file():
            raise UserError(
                f"bundle {bundle.path} lacks {name}. Copy the whole folder, or export it again"
            )
        if file.stat().st_size != expected["size"] or sha256_of(file) != expected["sha256"]:
            raise UserError(
                f"{file} was altered or truncated: its SHA-256 is not the one in {MANIFEST}. "
                "Copy it again, or export the bundle again"
            )


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Say in words what differs between two fingerprints; None when nothing does."""
    for key in [*wanted, *(k for k in recorded if k not in wanted)]:
        if recorded.get(key) != wanted.get(key):
            return f"{key} changed: {recorded.get(key)!r} -> {wanted.get(key)!r}"
    return None


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
