"""Combinations of methods, rates, layers and placements that are studied beside one another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec


@dataclass(frozen=True)
class Choice:
    """One merging that was asked for: what it is, or why it cannot be.

    Args:
        method, rate: as asked; options: of those given, what the method has.
        name: in a few words, see `label_of`.
        config: None where the method or the model cannot do it.
        refusal: why not; else None.
    """

    method: str
    rate: float | tuple[float, ...]
    options: Mapping[str, Any]
    name: str
    config: MergeConfig | None = None
    refusal: UserError | None = None


def choices(
    spec: ModelSpec,
    methods: Sequence[str],
    rates: Sequence[float | tuple[float, ...]],
    layers: Sequence[str | tuple[int, ...]] = ("all",),
    placements: Sequence[str] = ("attention",),
    options: Mapping[str, Any] | Sequence[str] = (),
    attentions: Sequence[str] = ("auto",),
    **more: Any,
) -> list[Choice]:
    """Judge every combination before any work, with no torch.

    Args:
        methods: names, see `choose_methods`.
        rates: shares of tokens to remove; one may be a rate per block.
        attentions: as `MergeConfig.attention`.
        options: the methods' own, as a mapping or as typed (`operator=central`); each goes to
            those methods that have it.
        more: further fields of `MergeConfig`, the same for all.

    Raises:
        UserError: none of them can be done, or an option that none of the methods takes.
    """
    from structsam.block_table import block_table
    from structsam.config import MergeConfig
    from structsam.methods.base import RateAboveLimit

    own, found = _options_of(methods, options), []
    combined = itertools.product(methods, layers, placements, attentions, rates)
    for method, where, placement, attention, rate in combined:
        asked: dict[str, Any] = {
            "method": method,
            "rate": rate,
            "layers": where,
            "placement": placement,
            "attention": attention,
            "options": own[method],
            **more,
        }
        about = Choice(method, rate, own[method], label_of(asked))
        try:
            config = MergeConfig.of(**asked)
            block_table(config, spec.grid, spec.window_sizes)
            found.append(replace(about, config=config))
        except UserError as error:
            found.append(replace(about, refusal=error))
    refusals = [choice.refusal for choice in found if choice.refusal]
    if found and len(refusals) == len(found):
        # a limit says less than anything else
        raise next((r for r in refusals if not isinstance(r, RateAboveLimit)), refusals[0])
    return found


def merge_configs(
    spec: ModelSpec,
    methods: Sequence[str],
    rates: Sequence[float],
    layers: Sequence[str],
    placements: Sequence[str] = ("attention",),
    **more: Any,
) -> tuple[list[MergeConfig], list[dict[str, str]]]:
    """Return every combination, rate 0 left out: that is the unmerged model.

    Returns:
        the configurations, and those that the method or model cannot do, with the reason.

    Raises:
        UserError: as `choices`.
    """
    from structsam.config import parse_layers

    merging = [rate for rate in rates if rate]
    found = choices(spec, methods, merging, list(map(parse_layers, layers)), placements, **more)
    left_out = [{"name": c.name, "reason": str(c.refusal)} for c in found if c.refusal]
    return [choice.config for choice in found if choice.config], left_out


def _options_of(
    names: Sequence[str], options: Mapping[str, Any] | Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Give every option to the methods that have it and allow its value.

    Raises:
        UserError: an option that none of the methods takes.
    """
    from structsam.methods import find_method
    from structsam.methods.options import known_options, parse_options

    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for given in options.items() if isinstance(options, Mapping) else options:
        refusals = []
        for name in names:
            try:
                if isinstance(given, str):
                    chosen[name].update(parse_options(find_method(name), [given]))
                else:
                    chosen[name].update(known_options(find_method(name), dict([given])))
            except UserError as error:
                refusals.append(error)
        if len(refusals) == len(names):
            raise refusals[0]
    return chosen


def label_of(merging: Mapping[str, Any]) -> str:
    """Say what merges in a few words, such as `structsam 0.5, global, block, edge=central`."""
    from structsam.merging.attention_forms import USUAL

    rate = merging["rate"]
    words = [
        f"{merging['method']} {rate:g}" if isinstance(rate, int | float) else "rates per block"
    ]
    layers = merging["layers"]
    if layers != "all":
        words.append(layers if isinstance(layers, str) else "layers " + _ranges(layers))
    if merging.get("placement", "attention") != "attention":
        words.append(merging["placement"])
    if merging.get("attention", "folded") not in USUAL:
        words.append(merging["attention"])
    words += [f"{name}={value}" for name, value in (merging.get("options") or {}).items()]
    words += ["proportional"] if merging.get("proportional") else []
    words += [f"box {merging['prompt_aware']}"] if merging.get("prompt_aware") else []
    return ", ".join(words)


def _ranges(blocks: Sequence[int]) -> str:
    blocks = sorted(blocks)
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]} to {blocks[-1]}"
    return " ".join(map(str, blocks))
