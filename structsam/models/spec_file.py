"""A `ModelSpec` as plain values: a small TOML file for `--model FILE.toml`, and in manifests.

```toml
name = "my_sam"          # of bundles; that of the file by default
width = 768
depth = 12
heads = 12
global_blocks = [2, 5, 8, 11]   # or "all"
window = 14              # these four have SAM's values by default
patch = 16
image_size = 1024
channels = 256
stretch_positions = false
decoder = true           # false for an encoder alone; a table where its sizes are not SAM's:

[decoder]                # instead of `decoder = true`
depth = 2
heads = 8
mlp = 2048
score = 256
hq = false               # true for SAM-HQ's decoder

[preprocessing]          # SAM's by default
mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]
resize = "long_side"     # or stretch
interpolation = "bilinear"  # or bicubic
scaling = "mean_std"     # or min_max
```
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam.models.spec import SAM_PREPROCESSING, DecoderSpec, ModelSpec, Preprocessing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIX = ".toml"

#: Key in a file -> field of `ModelSpec`, and the largest value that is believed.
_SIZES = {
    "width": ("embed_dim", 8192),
    "depth": ("depth", 256),
    "heads": ("num_heads", 512),
    "window": ("window_size", 256),
    "patch": ("patch_size", 64),
    "image_size": ("image_size", 4096),
    "channels": ("channels", 4096),
}
_REQUIRED = ("width", "depth", "heads", "global_blocks")
_DECODER_SIZES = {
    "depth": ("depth", 64),
    "heads": ("num_heads", 512),
    "mlp": ("mlp_dim", 65536),
    "score": ("score_dim", 65536),
}
_PREPROCESSING = ("resize", "interpolation", "scaling", "mean", "std")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def read_spec(path: str | Path) -> ModelSpec:
    """Read a geometry from a TOML file; see the module for its keys.

    Raises `UserError`: no such file, no TOML, an unknown key, or sizes that do not fit each other.
    """
    path = Path(path).expanduser()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"No model file {path}. Write one with width, depth, heads and global_blocks, or name "
            "a model of `structsam-export list`."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Cannot read model file {path}: {reason}. It must be TOML.") from None
    found = spec_from_dict({"name": path.stem, **values}, f"Model file {path}")
    if not values.get("preprocessing"):
        return found
    # by this name no checkpoint's folder overrides it, even where it is SAM's
    return replace(found, preprocessing=replace(found.preprocessing, name=found.name))


def spec_to_dict(spec: ModelSpec) -> dict[str, Any]:
    """Plain values of a spec at its trained size; `spec_from_dict` reads them back."""
    spec = spec.trained
    values: dict[str, Any] = {"name": spec.name}
    values |= {key: getattr(spec, name) for key, (name, _) in _SIZES.items()}
    values["global_blocks"] = list(spec.global_blocks)
    values["stretch_positions"] = spec.stretch_positions
    values["decoder"] = False
    if spec.decoder:
        values["decoder"] = {
            key: getattr(spec.decoder, name) for key, (name, _) in _DECODER_SIZES.items()
        } | {"hq": spec.decoder.hq}
    stated = spec.preprocessing.to_dict()
    values["preprocessing"] = {
        key: stated[key] for key in _PREPROCESSING if stated[key] is not None
    }
    return values


def spec_from_dict(values: Mapping[str, Any], where: str) -> ModelSpec:
    """Read what `spec_to_dict` wrote, or somebody; what is left out is SAM's.

    Args:
        where: what holds the values, for messages.

    Raises `UserError`, naming the key that does not fit.
    """
    allowed = ("name", *_SIZES, "global_blocks", "stretch_positions", "decoder", "preprocessing")
    _require_keys(values, allowed, _REQUIRED, where)
    name = values.get("name", "model")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: name is {name!r}, which is no name for a folder. Use letters, digits, "
            "'_', '-' and '.'."
        )
    sizes: dict[str, Any] = _sizes(values, _SIZES, where)
    blocks = _blocks(values["global_blocks"], sizes["depth"], where)
    _require_whole_patches(sizes, where)
    try:
        found = ModelSpec(
            name=name,
            title=name,
            weights_note=f"no weights of {name} are known here",
            global_blocks=blocks,
            stretch_positions=_flag(values, "stretch_positions", where),
            decoder=_decoder(values.get("decoder", True), where),
            **sizes,
        )
    except ValueError as reason:
        raise UserError(f"{where}: {reason}. Change one of them.") from None
    return replace(found, preprocessing=_preprocessing(values, found, where))


def _require_whole_patches(sizes: Mapping[str, int], where: str) -> None:
    pixels, patch = sizes.get("image_size", 1024), sizes.get("patch_size", 16)
    if pixels % patch:
        below = pixels // patch * patch
        near = " or ".join(str(side) for side in (below, below + patch) if side)
        raise UserError(
            f"{where}: image_size {pixels} is no multiple of a patch of {patch}. Use {near}."
        )


def _sizes(
    values: Mapping[str, Any], known: Mapping[str, tuple[str, int]], where: str
) -> dict[str, Any]:
    found = {}
    for key, (name, most) in known.items():
        if key not in values:
            continue
        value = values[key]
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{where}: {key} is {value!r}. Use a whole number from 1 to {most}.")
        found[name] = value
    return found


def _blocks(value: Any, depth: int, where: str) -> tuple[int, ...]:
    if value == "all":
        return tuple(range(depth))
    if isinstance(value, list) and all(type(i) is int and 0 <= i < depth for i in value):
        return tuple(sorted(set(value)))
    raise UserError(
        f'{where}: global_blocks is {value!r}. Use "all", or a list of blocks from 0 to '
        f"{depth - 1}, such as [2, 5, 8, 11]."
    )


def _flag(values: Mapping[str, Any], key: str, where: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} is {value!r}. Use true or false.")
    return value


def _decoder(value: Any, where: str) -> DecoderSpec | None:
    if isinstance(value, bool):
        return DecoderSpec() if value else None
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: decoder is {value!r}. Use true, false or a table.")
    inside = f"{where}, decoder"
    _require_keys(value, (*_DECODER_SIZES, "hq"), (), inside)
    return DecoderSpec(**_sizes(value, _DECODER_SIZES, inside), hq=_flag(value, "hq", inside))


def _preprocessing(values: Mapping[str, Any], spec: ModelSpec, where: str) -> Preprocessing:
    given = values.get("preprocessing", {})
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: preprocessing is {given!r}. Use a table.")
    _require_keys(given, _PREPROCESSING, (), f"{where}, preprocessing")
    stated = {**SAM_PREPROCESSING.to_dict(), "image_size": spec.image_size}
    if given.get("scaling") == "min_max":
        stated |= {"mean": None, "std": None}
    stated |= given
    stated["pad"] = stated["resize"] == "long_side"
    found = Preprocessing.from_dict(stated, f"change it in {where[:1].lower()}{where[1:]}")
    if found == replace(SAM_PREPROCESSING, image_size=spec.image_size):
        return found
    return replace(found, name=spec.name)


def _require_keys(
    values: Mapping[str, Any], allowed: tuple[str, ...], required: tuple[str, ...], where: str
) -> None:
    if missing := [key for key in required if key not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}. Add {missing[0]} = ...")
    if unknown := [key for key in values if key not in allowed]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}. Use some of: {', '.join(allowed)}.")
