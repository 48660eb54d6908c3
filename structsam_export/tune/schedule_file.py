"""A schedule: the rate of every block, found by `tune` and taken by `export --schedule`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export.bundle import atomic

if TYPE_CHECKING:
    from structsam.config import MergeConfig

FORMAT = 1


@dataclass(frozen=True)
class Schedule:
    """What `schedule.json` holds.

    Args:
        model: the model that it was found for; its number of blocks is that of `rates`.
        method, options, placement: as in `MergeConfig`.
        rates: of every block.
        found: how it was found and what it measured, for people.
    """

    model: str
    method: str
    rates: tuple[float, ...]
    placement: str = "attention"
    options: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def config(self, model: str, **more: Any) -> MergeConfig:
        """Return the merging for `model`.

        Raises:
            UserError: it was found for another model.
        """
        from structsam.config import MergeConfig

        if model != self.model:
            raise UserError(
                f"the schedule was found for {self.model}, not {model}. Run `structsam-export "
                f"tune --model {model}`"
            )
        return MergeConfig.of(
            method=self.method,
            rate=self.rates,
            options=self.options,
            placement=self.placement,
            **more,
        )

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        atomic.write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_schedule(path: str | Path) -> Schedule:
    """Read `schedule.json`.

    Raises:
        UserError: missing, damaged, of a newer version, or no schedule.
    """
    path = Path(path).expanduser()
    advice = "Give the schedule.json that `structsam-export tune` wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no schedule at {path}. {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"schedule {path} cannot be read ({error}). {advice}") from None
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise UserError(f"{path} is no schedule of format {FORMAT}. {advice}")
    try:
        return Schedule(
            str(data["model"]),
            str(data["method"]),
            tuple(float(rate) for rate in data["rates"]),
            str(data["placement"]),
            dict(data["options"]),
            dict(data["found"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"schedule {path} is incomplete ({error!r}). {advice}") from None
