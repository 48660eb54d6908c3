"""A recipe: size, merging and precision of one encoder, found by `tune`, made by `export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export.bundle import atomic

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

FORMAT = 1
_ADVICE = "Give the recipe.json that `structsam-export tune` wrote"


@dataclass(frozen=True)
class Recipe:
    """What `recipe.json` holds.

    Args:
        model: the model that it was found for.
        merging: as `MergeConfig.to_dict`; `rate` is a number, or one per block.
        image_size: side of the input in pixels; None for the trained one. The embedding is
            `native`, which keeps outlines better than `upsample` (docs/fidelity.md).
        precision: as `export` takes it.
        calibrate: folder of photos of an INT8 recipe; None where the search had no folder.
        found: what was measured, for people.
    """

    model: str
    merging: Mapping[str, Any]
    image_size: int | None = None
    precision: str = "fp32"
    calibrate: str | None = None
    found: Mapping[str, Any] = field(default_factory=dict)

    def config(self, spec: ModelSpec, **more: Any) -> MergeConfig:
        """Return the merging for a model, with the fields of `more` in their place.

        Raises:
            UserError: it was found for another model, or another size of the input.
        """
        from structsam.config import MergeConfig

        if spec.name != self.model:
            raise UserError(
                f"the recipe was found for {self.model}, not {spec.name}. Run `structsam-export "
                f"tune --model {spec.name}`"
            )
        size = spec.image_size if spec.trained_image_size else None
        if size != self.image_size:
            wanted = self.image_size or spec.trained_image_size
            raise UserError(
                f"the recipe is for an input of {wanted} pixels. Add `image_size={wanted}`"
            )
        return replace(MergeConfig.from_dict(self.merging), **more)

    @property
    def lacks_photos(self) -> bool:
        """Whether `export` has to be given photos to calibrate INT8 on."""
        return self.precision.startswith("int8") and self.calibrate is None

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        atomic.write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_recipe(path: str | Path) -> Recipe:
    """Read `recipe.json`.

    Raises:
        UserError: missing, damaged, of a newer version, or no recipe.
    """
    path = Path(path).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}. {_ADVICE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). {_ADVICE}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int) or "merging" not in data:
        raise UserError(f"{path} is no recipe. {_ADVICE}")
    if version > FORMAT:
        raise UserError(
            f"{path} has format {version}, and this structsam reads up to {FORMAT}. Update it "
            "with `pip install --upgrade structsam`"
        )
    try:
        return Recipe(**{f.name: data[f.name] for f in fields(Recipe)})
    except KeyError as error:
        raise UserError(f"{path} lacks {error}. {_ADVICE}") from None
