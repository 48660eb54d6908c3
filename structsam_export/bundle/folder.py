"""The bundle: one folder with everything that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam.models import Preprocessing
from structsam_export.bundle.files import sha256_of
from structsam_export.bundle.manifest import (
    MANIFEST,
    PROMPT_BOX,
    Part,
    PartName,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from structsam_export.predict.predictor import Predictor


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
    def preprocessing(self) -> Preprocessing:
        """How a photo becomes the encoder's input.

        Raises:
            UserError: the manifest asks for what this version does not know.
        """
        return Preprocessing.from_dict(self.manifest["preprocessing"])

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
        write_manifest(self.path, self.manifest)

    def update_manifest(self, **changes: Any) -> None:
        """Change top-level entries and save, keeping what another process wrote meanwhile."""
        if (self.path / MANIFEST).exists():
            current = read_manifest(self.path)
            self.manifest.clear()
            self.manifest.update(current)
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
    bundle = Bundle(folder, read_manifest(folder))
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
