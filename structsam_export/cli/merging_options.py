"""Options that choose one merging: a command takes them whole, as one `MergeConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structsam_export.cli.arguments import (
    Align,
    Attention,
    Layers,
    Method,
    Options,
    PromptAware,
    PromptForm,
    Proportional,
    Rate,
    RecipeFile,
    parse_rates,
    prompt_awareness,
    refuse_beside,
)

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

#: What a recipe says itself.
_OF_A_RECIPE = ("rate", "method", "layers", "placement", "option")
#: What may be chosen beside it.
_BESIDE_IT = ("attention", "align", "proportional", "prompt_aware")


@dataclass(frozen=True)
class MergingOptions:
    """One merging, as typed."""

    rate: Rate = "0.5"
    method: Method = "structsam"
    layers: Layers = "all"
    placement: Annotated[
        str, typer.Option(help="What runs on merged tokens: attention, block (MLP too) or stage.")
    ] = "attention"
    attention: Attention = "auto"
    option: Options = None
    recipe: RecipeFile = None
    align: Align = 1
    proportional: Proportional = False
    prompt_aware: PromptAware = False
    prompt_form: PromptForm = "rank"

    def choice(self, context: typer.Context) -> dict[str, Any]:
        """Return the fields of `MergeConfig` that any method has.

        Raises:
            UserError: a value that cannot be, or one beside the recipe that decides it.
        """
        from structsam.config import parse_layers

        if self.recipe is not None:
            refuse_beside(context, "--recipe", _OF_A_RECIPE)
        return {
            "rate": parse_rates(self.rate),
            "layers": parse_layers(self.layers),
            "placement": self.placement,
            "attention": self.attention,
            "align": self.align,
            "proportional": self.proportional,
            "prompt_aware": prompt_awareness(self.prompt_aware, self.prompt_form),
        }

    def config(self, context: typer.Context, spec: ModelSpec) -> MergeConfig:
        """Return the merging for a model; raises `UserError` as `choice` does."""
        from structsam.config import MergeConfig
        from structsam.methods import find_method
        from structsam.methods.options import parse_options

        choice = self.choice(context)
        if self.recipe is None:
            options = parse_options(find_method(self.method), self.option or ())
            return MergeConfig.of(method=self.method, options=options, **choice)
        from structsam_export.tune.recipe import read_recipe

        beside = {name: choice[name] for name in _BESIDE_IT}
        return read_recipe(self.recipe).config(spec, **beside)


@dataclass(frozen=True)
class CountedMerging(MergingOptions):
    """One merging to count, or every method's; also as the thesis' code places it."""

    method: Annotated[str, typer.Option(help="Merging method; see `list`; or all.")] = "structsam"
    placement: Annotated[
        str,
        typer.Option(help="attention, block or stage, as `export`; thesis: as its code does."),
    ] = "attention"

    def choice(self, context: typer.Context) -> dict[str, Any]:
        """Return the fields but the placement: what is counted knows one more."""
        fields = super().choice(context)
        return {name: value for name, value in fields.items() if name != "placement"}
