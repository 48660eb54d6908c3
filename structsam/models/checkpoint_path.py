"""Which weight files a checkpoint's path means: one file, or those of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam.models.spec import ModelSpec

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
#: In the order in which transformers looks for them; the second of a pair lists shards.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
#: `model_type` of a folder whose model is the original SAM.
_MODEL_TYPE = "sam"


def checkpoint_files(path: str | Path, spec: ModelSpec | None = None) -> tuple[Path, ...]:
    """The weight files of `path`: itself, or the shards of a `SamModel` saved by transformers.

    Raises `UserError` for what is neither, names the file that is missing, and refuses adapters.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return (existing_file(path, spec),)
    if (path / _ADAPTER).is_file():
        raise UserError(
            f"Checkpoint {path} holds an adapter (LoRA) without its model: merge it first, with "
            "peft `model.merge_and_unload().save_pretrained(FOLDER)`, and pass that folder."
        )
    if not (path / _CONFIG).is_file():
        raise UserError(
            f"Checkpoint {path} is a folder without {_CONFIG}, expected one that "
            "`SamModel.save_pretrained` wrote, or a .pth or .safetensors file: name the file."
        )
    kind = read_json(path / _CONFIG).get("model_type")
    if kind != _MODEL_TYPE:
        raise UserError(
            f"Checkpoint {path} holds a model of type {kind!r}, expected {_MODEL_TYPE!r}, "
            "transformers' SamModel: pass another folder."
        )
    for name in _WEIGHTS:
        if (path / name).is_file():
            return (existing_file(path / name),)
        if (path / (name + _INDEX)).is_file():
            return tuple(existing_file(path / shard) for shard in _shards(path / (name + _INDEX)))
    raise UserError(
        f"Checkpoint {path} has a {_CONFIG} and no weights, expected {' or '.join(_WEIGHTS)}: "
        "download the folder again, with its large files."
    )


def existing_file(path: str | Path, spec: ModelSpec | None = None) -> Path:
    """`path` with `~` expanded. Raises `UserError` unless it is a readable, non-empty file."""
    path = Path(path).expanduser()
    hint = spec.how_to_get_weights if spec else "pass the path of a weight file"
    hint = hint[:1].upper() + hint[1:]
    if path.is_dir():
        raise UserError(f"Checkpoint {path} is a folder, expected a weight file: name the file.")
    if not path.exists():
        raise UserError(f"Checkpoint not found: {path}. {hint}.")
    if path.stat().st_size == 0:
        raise UserError(f"Checkpoint {path} is empty (0 bytes), expected weights. {hint}.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"Cannot read checkpoint {path}: {error.strerror}.") from error
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError` where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Cannot read {path}: {reason}. Download it again.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, expected an object. Get it again.")
    return data


def _shards(index: Path) -> list[str]:
    """The files that an index names, each beside it."""
    table = read_json(index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names:
        raise UserError(f"{index} names no files under 'weight_map'. Download it again.")
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{index} names {name!r}, which is no file beside it. Refused.")
    return names
