"""How a checkpoint wants its photos: the processor's file in the folder of a Hugging Face model.

transformers 5 writes `processor_config.json` with the image processor inside, or, as earlier
versions, `preprocessor_config.json`. A `SamImageProcessor` scales the long side, rescales to 0..1,
normalises, and pads with zeros at the right and bottom, which is our `long_side` in other units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam.models.checkpoint_path import read_json
from structsam.models.spec import (
    SAM_PREPROCESSING,
    Interpolation,
    ModelSpec,
    Preprocessing,
    Triple,
)

_NESTED = ("processor_config.json", "image_processor")
_ALONE = "preprocessor_config.json"

#: Pillow's numbers of the filters that are known here.
_RESAMPLE: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
#: What `SamImageProcessor` takes where its file says nothing.
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "do_center_crop": False,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
#: Settings that must be so: nothing else gives the encoder's square input.
_FIXED = {"do_resize": True, "do_pad": True, "do_center_crop": False}


def with_its_preprocessing(spec: ModelSpec, checkpoint: str | Path | None) -> ModelSpec:
    """The model with the preprocessing that a checkpoint's folder states.

    A model that has its own (medsam) keeps it, and so does one whose folder states SAM's.
    Raises `UserError` for a processor that photos cannot be prepared by here.
    """
    path = Path(checkpoint).expanduser() if checkpoint is not None else None
    usual = replace(SAM_PREPROCESSING, image_size=spec.image_size)
    if path is None or not path.is_dir() or spec.preprocessing != usual:
        return spec
    file, stated = _processor_of(path)
    if stated is None:
        return spec
    found = _preprocessing(stated, spec.trained.image_size, file)
    return replace(spec, preprocessing=found)


def preprocessing_note(spec: ModelSpec) -> str:
    """Say what differs from SAM's preprocessing, after a comma; nothing where nothing does."""
    how, usual = spec.preprocessing, SAM_PREPROCESSING
    if how.scaling == "min_max":
        said = ["scaled to 0..1"]
    elif (how.mean, how.std) != (usual.mean, usual.std):
        said = [f"normalised by mean {_told(how.mean)}, std {_told(how.std)}"]
    else:
        said = []
    if how.resize != usual.resize:
        said.append("stretched to a square")
    if how.interpolation != usual.interpolation:
        said.append(f"resized {how.interpolation}")
    return "".join(f", {each}" for each in said)


def _told(values: Triple | None) -> str:
    return "/".join(f"{value:g}" for value in values or ())


def _processor_of(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The file that states an image processor, and what it states."""
    name, key = _NESTED
    if (folder / name).is_file():
        stated = read_json(folder / name).get(key)
        if isinstance(stated, Mapping):
            return folder / name, stated
    file = folder / _ALONE
    return file, read_json(file) if file.is_file() else None


def _preprocessing(stated: Mapping[str, Any], side: int, file: Path) -> Preprocessing:
    values = _DEFAULTS | {key: stated[key] for key in _DEFAULTS if stated.get(key) is not None}

    def misfit(key: str, found: Any, expected: str) -> UserError:
        return UserError(
            f"{file} says {key} {found!r}, expected {expected}. Change it there if the model takes "
            "such photos, or describe its preprocessing in a TOML file for `model=`"
        )

    kind = stated.get("image_processor_type", "SamImageProcessor")
    if not isinstance(kind, str) or not kind.startswith("SamImageProcessor"):
        raise misfit("image_processor_type", kind, "SamImageProcessor")
    for key, wanted in _FIXED.items():
        if values[key] is not wanted:
            raise misfit(key, values[key], str(wanted).lower())
    size = stated.get("size", {"longest_edge": side})
    if size != {"longest_edge": side} and size != side:
        raise misfit("size", size, f"a longest_edge of {side}, the encoder's input")
    pad = stated.get("pad_size", {"height": side, "width": side})
    if pad != {"height": side, "width": side} and pad != side:
        raise misfit("pad_size", pad, f"{side} x {side}, the encoder's input")
    resample = values["resample"]
    if type(resample) is not int or resample not in _RESAMPLE:
        raise misfit("resample", resample, "2 (bilinear) or 3 (bicubic)")
    scale = values["rescale_factor"] if values["do_rescale"] else 1
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise misfit("rescale_factor", scale, "a number above 0")
    if not values["do_normalize"]:
        values |= {"image_mean": 0, "image_std": 1}
    mean, std = (_three(values[key], scale, key, misfit) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise misfit("image_std", values["image_std"], f"numbers above 0 for x * {scale:g}")
    found = replace(
        SAM_PREPROCESSING,
        image_size=side,
        interpolation=_RESAMPLE[resample],
        mean=mean,
        std=std,
    )
    usual = replace(SAM_PREPROCESSING, image_size=side)
    return found if found == usual else replace(found, name="checkpoint")


def _three(value: Any, scale: float, key: str, misfit: Any) -> Triple:
    """Means or deviations of x in 0..255 from those of x * scale.

    Sums of rounding are not worth other numbers than SAM's.
    """
    values = [value] * 3 if type(value) in (int, float) else value
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(type(v) in (int, float) and math.isfinite(v / scale) for v in values)
    ):
        raise misfit(key, value, "three numbers")
    first, second, third = (round(v / scale, 6) for v in values)
    return first, second, third
