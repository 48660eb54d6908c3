"""Reads weight files nobody vouches for, and says exactly which file it was.

Imports torch only where tensors are read: identifying a file needs none.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam.models import MODELS
from structsam.models.checkpoint_keys import (
    LANDMARK,
    Recognised,
    is_hq,
    lora_keys,
    recognise,
    what_else,
)
from structsam.models.checkpoint_path import checkpoint_files
from structsam.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

_CHUNK = 4 << 20
_ZIP, _LEGACY_TORCH = b"PK\x03\x04", b"\x80\x02"
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, as in the format's own reader
#: Under which training code keeps the weights, beside optimisers and the like.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net")


@dataclass(frozen=True)
class CheckpointIdentity:
    """Which weight file a bundle came from.

    file: name without its folder. size: bytes. official: the model whose official file this is,
    or None.
    """

    file: str
    size: int
    md5: str
    sha256: str
    official: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain types for the manifest's JSON."""
        return asdict(self)


def identify_checkpoint(path: str | Path) -> CheckpointIdentity:
    """Hash the weights once, and recognise SAM's official files by size and MD5.

    Several files of a folder count as one, in the order of their names.
    Raises `UserError` when `path` means no readable, non-empty files.
    """
    path, files = Path(path).expanduser(), checkpoint_files(path)
    md5, sha256 = hash_file(*files)
    size = sum(file.stat().st_size for file in files)
    official = next(
        (
            name
            for name, spec in MODELS.items()
            if spec.official and (spec.official.size, spec.official.md5) == (size, md5)
        ),
        None,
    )
    return CheckpointIdentity(path.name, size, md5, sha256, official)


def hash_file(*paths: Path) -> tuple[str, str]:
    """MD5 and SHA-256 of files, one after the other, in lower-case hex and in one pass."""
    md5 = hashlib.md5(usedforsecurity=False)
    sha256 = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                md5.update(chunk)
                sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, under segment-anything's names.

    names: how its own keys were recognised.
    """

    state: dict[str, torch.Tensor]
    names: Recognised

    @property
    def title(self) -> str:
        """How it is named and how many tensors it has; what was left out, if anything."""
        others = self.names.others
        left_out = f"; left out {len(others)} others ({_first(others)})" if others else ""
        return self.names.title + left_out


def read_checkpoint(path: str | Path, spec: ModelSpec | None = None) -> Checkpoint:
    """The tensors of a file or a folder on the CPU, mapped from disk where possible.

    The format is told by content, not by name, and the names by their keys. A dict wrapped as
    {"model": ...} or {"state_dict": ...} is unwrapped. Pickles are read with `weights_only=True`:
    one that asks for anything beyond tensors is refused. Keys and shapes are checked by
    `check_state_dict`. Raises `UserError` for everything that is no SAM checkpoint.
    """
    path = Path(path).expanduser()
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint_files(path, spec):
        found.update(_read_file(file, spec))
    adapters = lora_keys(found)
    if adapters:
        raise UserError(
            f"Checkpoint {path} holds adapters (LoRA): {len(adapters)} of {len(found)} tensors "
            f"({_first(adapters)}). Merge them into the model's weights, and save its state dict."
        )
    try:
        names = recognise(found)
    except ValueError as reason:
        raise UserError(f"Checkpoint {path} {reason}: save one model's state dict.") from reason
    if names is None:
        if (other := what_else(found)) is not None:
            raise UserError(f"Checkpoint {path} holds {other}.")
        raise UserError(
            f"Checkpoint {path} holds no Segment Anything model: its {len(found)} keys are "
            f"{_first(found)}, expected image_encoder.*, prompt_encoder.*, mask_decoder.*, or "
            "those of transformers' SamModel."
        )
    return Checkpoint({name: found[key] for name, key in names.keys.items()}, names)


def _read_file(path: Path, spec: ModelSpec | None) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT:
        return _read_safetensors(path, spec)
    if head.startswith((_ZIP, _LEGACY_TORCH)):
        return _unwrap(_read_pickle(path, spec, mmap=head.startswith(_ZIP)), path)
    found = _what_it_looks_like(head)
    raise UserError(
        f"Checkpoint {path} is {found}, expected a .pth or .safetensors file{_size_hint(path)}."
        f"{_way_out(spec)}"
    )


def check_state_dict(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    spec: ModelSpec,
    path: str | Path,
) -> None:
    """Compare keys and shapes with `expected`, the ones of `spec`'s model.

    Raises `UserError`: with the model the file does hold where that can be told from its shapes,
    otherwise with the first keys that are missing, extra or of another shape.
    """
    size, hq = width_and_depth(state), is_hq(state)
    same = [s for s in MODELS.values() if size and (s.embed_dim, s.depth, s.hq) == (*size, hq)]
    if size and (size != (spec.embed_dim, spec.depth) or (hq != spec.hq and same)):
        width, depth = size
        patch = tuple(state[LANDMARK].shape[2:]) if LANDMARK in state else ()
        names = [s.name for s in same if patch in ((), (s.patch_size, s.patch_size))]
        holds = f"{' or '.join(names) or 'an unknown model'} ({_told(width, depth, hq)})"
        way_out = f"use `model='{names[0]}'`" if names else "pass another checkpoint"
        wanted = _told(spec.embed_dim, spec.depth, spec.hq)
        raise UserError(
            f"Checkpoint {path} holds {holds}, expected {spec.name} ({wanted}): {way_out}, "
            f"or {spec.how_to_get_weights}."
        )
    problems = []
    if missing := [key for key in expected if key not in state]:
        problems.append(f"lacks {len(missing)} of {len(expected)} tensors ({_first(missing)})")
    if extra := [key for key in state if key not in expected]:
        problems.append(f"has {len(extra)} unknown tensors ({_first(extra)})")
    common = [key for key in expected if key in state]
    if wrong := [key for key in common if tuple(state[key].shape) != tuple(expected[key])]:
        key = wrong[0]
        problems.append(
            f"has {len(wrong)} tensors of another shape ({key} is {list(state[key].shape)}, "
            f"expected {list(expected[key])})"
        )
    if integers := [key for key in common if not state[key].is_floating_point()]:
        problems.append(f"has {len(integers)} tensors that are not floats ({_first(integers)})")
    if problems:
        raise UserError(
            f"Checkpoint {path} does not fit {spec.name}: it {', and '.join(problems)}. "
            "Pass a checkpoint of the unchanged architecture."
        )


def width_and_depth(state: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """The encoder's channels and number of blocks, where the keys tell them."""
    blocks = {key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")}
    position = state.get("image_encoder.pos_embed")
    if position is None or not position.ndim or not blocks:
        return None
    return int(position.shape[-1]), len(blocks)


def refuse_foreign_official(path: Path, spec: ModelSpec) -> None:
    """Stop plain SAM weights from being used under a model that only shares their geometry.

    Hashes the file only when its size is that of an official one. Raises `UserError`.
    """
    size = sum(file.stat().st_size for file in checkpoint_files(path))
    if spec.official or all(s.official is None or s.official.size != size for s in MODELS.values()):
        return
    owner = identify_checkpoint(path).official
    if owner:
        raise UserError(
            f"Checkpoint {path} is the official file of {owner}, expected weights of {spec.name}: "
            f"use `model='{owner}'`, or {spec.how_to_get_weights}."
        )


def _read_safetensors(path: Path, spec: ModelSpec | None) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            f"Reading {path.name} needs safetensors: pip install 'structsam[export]'."
        ) from error
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, spec, error) from error


def _read_pickle(path: Path, spec: ModelSpec | None, mmap: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        asks = f"asks for {named[1]}" if named else "holds more than tensors"
        raise UserError(
            f"Checkpoint {path} is refused: its pickle {asks}, which could run code; expected "
            "tensors only: save model.state_dict() alone, or as .safetensors."
        ) from error
    except Exception as error:  # damaged bytes can raise nearly anything in here
        raise _damaged(path, spec, error) from error


def _unwrap(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(loaded, Mapping):
        for key in _WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise UserError(
            f"Checkpoint {path} holds a {type(loaded).__name__}, expected a state dict: "
            "save model.state_dict()."
        )
    for key, value in loaded.items():
        if not isinstance(key, str):
            raise UserError(
                f"Checkpoint {path} has {key!r} for a key, expected names of tensors: "
                "save model.state_dict()."
            )
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"Checkpoint {path} holds a {type(value).__name__} under {key!r}, expected only "
                "tensors: save model.state_dict()."
            )
    return dict(loaded)


def _damaged(path: Path, spec: ModelSpec | None, error: Exception) -> UserError:
    reason = re.split(r"\.?\n|\. ", str(error).strip() or type(error).__name__)[0]
    return UserError(
        f"Checkpoint {path} is truncated or damaged: {path.stat().st_size:,} bytes"
        f"{_size_hint(path)} ({reason}).{_way_out(spec)}"
    )


def _size_hint(path: Path) -> str:
    for spec in MODELS.values():
        if spec.official and spec.official.file == path.name:
            return f"; the official {path.name} has {spec.official.size:,}"
    return ""


def _what_it_looks_like(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved under this name"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if text.startswith(b"\x80"):
        return "a plain Python pickle, which could run code"
    return f"of an unknown format (it starts with {head[:8]!r})"


def _told(width: int, depth: int, hq: bool) -> str:
    return f"{width} wide, {depth} blocks{', SAM-HQ' if hq else ''}"


def _first(keys: Iterable[str], limit: int = 5) -> str:
    keys = list(keys)
    return ", ".join(map(str, keys[:limit])) + (", ..." if len(keys) > limit else "") or "none"


def _way_out(spec: ModelSpec | None) -> str:
    if spec is None:
        return ""
    sentence = spec.how_to_get_weights
    return f" {sentence[:1].upper()}{sentence[1:]}."
