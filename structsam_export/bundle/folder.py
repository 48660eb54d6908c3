"""The bundle: one folder with everything that runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from structsam.errors import UserError
from structsam.models import Preprocessing
from structsam_export.bundle.files import FileRecord, inside, locked
from structsam_export.bundle.manifest import (
    HQ_MASKS,
    PROMPT_BOX,
    REFERENCE_FOLDER,
    EngineEntry,
    ParityVerdict,
    Part,
    PartName,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from structsam_export.bundle.weights_source import ModelRecord

if TYPE_CHECKING:
    from structsam_export.predict.predictor import Predictor

_LOCK = ".manifest.lock"
_log = logging.getLogger("structsam_export")


@dataclass
class Bundle:
    """An opened bundle: its folder and its manifest (see the README for the fields)."""

    path: Path
    manifest: dict[str, Any]

    def part(self, name: PartName) -> Part:
        """Return the contract of the encoder or the decoder.

        Raises:
            UserError: the model is an encoder alone.
        """
        if name not in self.manifest and name in get_args(PartName):
            raise UserError(
                f"bundle {self.name} has no {name}: its model, {self.model.name}, is an image "
                "encoder alone, without prompts and masks. Run the encoder, and what reads its "
                "embedding"
            )
        return Part.from_dict(self.manifest[name])

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The networks that it has: both, or the encoder alone."""
        return tuple(name for name in get_args(PartName) if name in self.manifest)

    def onnx_path(self, name: PartName) -> Path:
        """Return the ONNX file of the encoder or the decoder."""
        return self.file(self.part(name).file)

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest names; see `inside`."""
        return inside(self.path, name)

    @property
    def files(self) -> dict[str, FileRecord]:
        """What was recorded of every file: networks, their data, references."""
        recorded = self.manifest.get("files", {})
        return {name: FileRecord.from_dict(record) for name, record in recorded.items()}

    @property
    def engines(self) -> list[EngineEntry]:
        """What was recorded of every engine."""
        return list(map(EngineEntry.from_dict, self.manifest.get("engines", [])))

    @property
    def reference_files(self) -> list[str]:
        """Names of the photos that parity is checked on, and of what PyTorch computed on them."""
        return [name for name in self.files if name.startswith(f"{REFERENCE_FOLDER}/")]

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
    def model(self) -> ModelRecord:
        """Which model this is, and where its weights come from."""
        return ModelRecord.from_dict(self.manifest["model"])

    @property
    def parity_verdict(self) -> ParityVerdict | None:
        """How the latest check ended; None before the first."""
        found = self.manifest.get("parity")
        return found and ParityVerdict.from_dict(found)

    @property
    def has_random_weights(self) -> bool:
        """Whether masks of this bundle carry no meaning."""
        return self.model.is_random

    @property
    def needs_checkpoint(self) -> bool:
        """Whether torch needs the weight file again: it is neither embedded nor random."""
        return self.model.weights == "checkpoint"

    @property
    def features(self) -> tuple[TensorSpec, ...]:
        """The encoder's outputs that the decoder takes, in their order; see `features.py`.

        Of an encoder without a decoder all of its outputs.
        """
        outputs = self.part("encoder").outputs
        if "decoder" not in self.parts:
            return outputs
        taken = {spec.name for spec in self.part("decoder").inputs}
        return tuple(spec for spec in outputs if spec.name in taken)

    @property
    def takes_box(self) -> bool:
        """Whether the encoder takes a prompt box, so that an embedding belongs to one prompt."""
        return any(spec.name == PROMPT_BOX for spec in self.part("encoder").inputs)

    @property
    def is_hq(self) -> bool:
        """Whether this is a SAM-HQ, whose decoder also draws a mask of the HQ token."""
        return "decoder" in self.parts and any(
            spec.name == HQ_MASKS for spec in self.part("decoder").outputs
        )

    def predictor(self, backend: str = "auto", **options: Any) -> Predictor:
        """Open the bundle for prediction; see `structsam_export.predict.predictor.Predictor`."""
        from structsam_export.predict.predictor import Predictor

        return Predictor(self, backend=backend, **options)

    def save_manifest(self) -> None:
        """Write the manifest with a fresh digest, atomically."""
        write_manifest(self.path, self.manifest)

    def reload(self) -> None:
        """Read the manifest anew: another process may have recorded something.

        Raises:
            UserError: as `read_manifest`.
        """
        current = read_manifest(self.path)
        self.manifest.clear()
        self.manifest.update(current)

    @contextmanager
    def manifest_to_change(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest as it is on disk now, and save what the block makes of it.

        Only one process is inside at a time, so that no entry is lost.

        Raises:
            UserError: the manifest was altered since it was written, or cannot be written.
        """
        with locked(self.path / _LOCK):
            self.reload()
            yield self.manifest
            self.save_manifest()

    def record_file(self, name: str) -> None:
        """Put size and SHA-256 of the file `name` (relative) into the manifest."""
        self.manifest.setdefault("files", {})[name] = vars(FileRecord.of(self.file(name)))

    def verify(self, names: Iterable[str], advice: str = "Copy it again") -> None:
        """Compare files with what was recorded of them.

        Args:
            names: relative to the folder.
            advice: how to mend it, before "or export the bundle again".

        Raises:
            UserError: one is missing or was altered.
        """
        recorded = self.files
        for name in names:
            if name in recorded and (damage := recorded[name].damage(self.file(name))):
                raise UserError(
                    f"bundle {self.path}: {name} {damage}. {advice}, or export the bundle again"
                )


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle folder.

    Args:
        verify: compare the SHA-256 of both networks with the manifest. What only a check of parity
            needs (`reference/`) is judged there, and may be absent where a bundle only runs.

    Raises:
        UserError: no such folder; no, damaged or altered manifest; newer schema; a missing or
            altered network; a file that is named outside of the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "it is a file, and a folder is needed" if folder.exists() else "no such folder"
        raise UserError(f"no bundle at {folder}: {what}. Make one with `structsam-export export`")
    bundle = Bundle(folder, read_manifest(folder))
    if verify:
        references = bundle.reference_files
        bundle.verify(name for name in bundle.files if name not in references)
    _log.debug(
        "opened bundle %s, %s, made with %s",
        folder,
        "files verified" if verify else "files not verified",
        bundle.manifest.get("tool_versions"),
    )
    return bundle
