"""MergeConfig: which method merges how much in which blocks. Validated once, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from structsam.errors import UserError
from structsam.merging.attention_forms import AUTO, read_forms
from structsam.methods import METHODS, find_method, rate_limit
from structsam.methods.base import check_rate
from structsam.methods.options import known_options

LAYER_SETS = ("all", "global", "window")
#: What runs on merged tokens: attention (the paper's), also the MLP, or whole runs of blocks.
PLACEMENTS = ("attention", "block", "stage")
#: How a prompt box steers merging: it only ranks cells, or windows around it merge less as well.
PROMPT_FORMS = ("rank", "windows")


@dataclass(frozen=True)
class MergeConfig:
    """What `apply_merging` puts into an encoder.

    Args:
        method: key of `structsam.methods.METHODS`.
        rate: share of every map's tokens to remove; one number, or one per block of the encoder.
        layers: `all`, `global`, `window`, or block indices.
        attention: key of `structsam.merging.attention_forms.FORMS`, or one for each kind of block,
            such as `global=folded_padded,window=folded`; `auto` is `folded` in torch, and what
            `structsam_export` knows to be best for the runtime of an export.
        options: (name, value) pairs of the method's own options; see its class.
        align: keep a multiple of this many tokens of every map, by removing a few more.
        proportional: add the log of a slot's size to the logits of its key.
        prompt_aware: None, `rank` (what lies outside the prompt box merges first) or `windows`
            (and the windows that the box covers most merge less, the others more).
        placement: one of `PLACEMENTS`: merge around attention; also around the MLP, by the same
            plan; or once for every run of blocks that share a window layout and a rate.

    Raises:
        UserError: unknown name, or a rate or an option outside the method's range.
    """

    method: str = "structsam"
    rate: float | tuple[float, ...] = 0.5
    layers: str | tuple[int, ...] = "all"
    attention: str = AUTO
    options: tuple[tuple[str, Any], ...] = ()
    align: int = 1
    proportional: bool = False
    prompt_aware: str | None = None
    placement: str = "attention"

    def __post_init__(self) -> None:
        method = find_method(self.method)
        known_options(method, dict(self.options))
        limit = rate_limit(method, dict(self.options))
        for rate in self.rate if isinstance(self.rate, tuple) else (self.rate,):
            check_rate(rate, method.name, limit)
        if type(self.align) is not int or self.align < 1:
            raise UserError(f"align must be a whole number from 1, not {self.align!r}")
        if self.placement not in PLACEMENTS:
            raise UserError(
                f"unknown placement {self.placement!r}. Use one of: {', '.join(PLACEMENTS)}"
            )
        if self.prompt_aware is not None and self.prompt_aware not in PROMPT_FORMS:
            raise UserError(
                f"unknown prompt_aware {self.prompt_aware!r}. Use one of: {', '.join(PROMPT_FORMS)}"
            )
        if self.prompt_aware and not self.merges:
            raise UserError(
                "a prompt box steers merging, and rate 0 merges nothing. Raise the rate"
            )
        if self.prompt_aware and not method.takes_box:
            able = ", ".join(name for name, m in METHODS.items() if m.takes_box)
            raise UserError(
                f"method {self.method!r} takes no prompt box. Use one that does: {able}"
            )
        if not _are_layers(self.layers):
            raise UserError(
                f"unknown layers {self.layers!r}. Use one of: {', '.join(LAYER_SETS)}, "
                "or block indices such as 7,8,9"
            )
        read_forms(self.attention)

    @property
    def merges(self) -> bool:
        """Whether any block has a rate above 0."""
        return any(self.rate if isinstance(self.rate, tuple) else (self.rate,))

    @classmethod
    def of(cls, config: MergeConfig | None = None, **choice: Any) -> MergeConfig:
        """Return `config`, or the default, with the fields of `choice` in their place.

        Lists, ranges and arrays become tuples; `options` may be a mapping.

        Raises:
            UserError: an unknown name, or a value outside its range.
        """
        if config is not None and not isinstance(config, cls):
            raise UserError(
                f"{config!r} is no MergeConfig. Name what is chosen, such as method='structsam'"
            )
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in choice if name not in known]:
            raise UserError(f"unknown argument {unknown[0]!r}. Merging takes: {', '.join(known)}")
        frozen: dict[str, Any] = {
            name: _pairs(value) if name == "options" else _frozen(value)
            for name, value in choice.items()
        }
        return replace(config or cls(), **frozen)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {**vars(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeConfig:
        """Read what `to_dict` wrote; other keys are ignored, missing ones have their defaults.

        Raises:
            UserError: merging that this version no longer has.
        """
        shared = values.get("reuse", 1)
        if shared != 1:
            raise UserError(
                f"this merging was made with reuse {shared}, one plan for several blocks, which "
                "structsam no longer has. Use its ONNX or engine, or export again without it"
            )
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls.of(**known)


def _pairs(options: Any) -> tuple[tuple[str, Any], ...]:
    """Read a mapping or pairs; None is none."""
    try:
        return tuple((str(name), value) for name, value in dict(options or ()).items())
    except (TypeError, ValueError):
        raise UserError(
            f"options {options!r} are no names with values. Pass a dict such as "
            '{"operator": "central"}'
        ) from None


def _frozen(value: Any) -> Any:
    """Make a sequence a tuple; anything else is left for the checks to judge."""
    if hasattr(value, "tolist"):  # numpy and torch numbers, arrays and tensors
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, tuple, range)) else value


def _are_layers(layers: object) -> bool:
    if isinstance(layers, str):
        return layers in LAYER_SETS
    return (
        isinstance(layers, tuple) and bool(layers) and all(type(index) is int for index in layers)
    )


def parse_layers(text: str) -> str | tuple[int, ...]:
    """Read `all`, `global`, `window` or `7,8,9` as typed on a command line.

    Raises:
        UserError: anything else.
    """
    if text in LAYER_SETS:
        return text
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(
            f"unknown layers {text!r}. Use one of: {', '.join(LAYER_SETS)}, "
            "or block indices such as 7,8,9"
        ) from None
