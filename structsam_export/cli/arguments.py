"""Arguments that several commands share, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam.errors import UserError
from structsam_export.cli.photo_paths import all_from_home, from_home

if TYPE_CHECKING:
    from structsam.models import ModelSpec
    from structsam_export.bundle.weights_source import ModelSource
    from structsam_export.cli.terminal import Terminal

Model = Annotated[
    str, typer.Option(help="See `list`; a .toml file; or auto: what --checkpoint holds.")
]
Method = Annotated[str, typer.Option(help="Merging method; see `list`.")]
Methods = Annotated[str, typer.Option(help="all, or methods such as structsam,tome.")]
Rate = Annotated[str, typer.Option(help="Share of tokens to remove; or one per block: 0.5,0,...")]
Layers = Annotated[str, typer.Option(help="all, global, window, or block indices such as 7,8,9.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="name=value of the method's own; see `list`; repeat it."),
]
Attention = Annotated[
    str, typer.Option(help="auto, a form (see `list`), or global=FORM,window=FORM.")
]
Align = Annotated[int, typer.Option(min=1, help="Keep a multiple of this many tokens.")]
Proportional = Annotated[
    bool, typer.Option("--proportional", help="Add the log of a slot's size to its logits.")
]
PromptAware = Annotated[
    bool, typer.Option("--prompt-aware", help="The encoder takes the prompt's box as well.")
]
PromptForm = Annotated[
    str, typer.Option(help="rank: outside merges first; windows: also less inside.")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="What `tune` found: recipe.json.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `export`.")]
BackendName = Annotated[str, typer.Option(help="auto, or a backend; see `list`.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Photo; repeat it.", callback=all_from_home),
]
Precision = Annotated[
    str, typer.Option(help="fp16, fp32, int8 (GPUs), int8-fp32 or int8-attention-fp32 (CPUs).")
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        help="INT8: folder of 16 to 128 photos to measure activations on.", callback=from_home
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="GPU generation, such as sm89; repeat it, or say all."),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", help="h100, rtx4090, orin-nano...: what it needs at least; repeat."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only, on stdout.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help=".pth, .safetensors, or a Hugging Face folder.")
]
Weights = Annotated[str | None, typer.Option(help="random: for latency work only.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random weights.")]
ImageSize = Annotated[
    str | None,
    typer.Option(
        help="Side of the input: a multiple of the patch (16 in SAM); 896, 672, 448 fill windows."
    ),
]
EmbeddingForm = Annotated[
    str, typer.Option(help="At another size: native (smaller), or upsample (as at 1024).")
]


def _note_more_threads_than_cores(threads: int | None) -> int | None:
    from structsam_export.machine import usable_cores

    cores = usable_cores()
    if threads and cores and threads > cores:
        make_terminal().warn(
            f"{threads} threads on {cores} usable cores wait for each other, and can take many "
            f"times as long. Use --threads {cores}, or leave it out"
        )
    return threads


HqTokenOnly = Annotated[
    bool, typer.Option("--hq-token-only", help="SAM-HQ: the HQ token's mask, not added to SAM's.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads.", callback=_note_more_threads_than_cores),
]


@dataclass(frozen=True)
class SizeOptions:
    """At which input size a model is looked at."""

    image_size: ImageSize = None
    embedding: EmbeddingForm = "native"

    def spec(self, model: str | ModelSpec) -> ModelSpec:
        """Return the model at that size; raises `UserError` for an unknown model, size or form."""
        from structsam.models.find_model import find_model
        from structsam.models.image_size import read_image_size, resized

        side = None if self.image_size is None else read_image_size(self.image_size)
        return resized(find_model(model)[0], side, self.embedding)  # type: ignore[arg-type]

    def specs(self, model: str | ModelSpec) -> list[ModelSpec]:
        """Return the model at every size of a list."""
        sides = [None] if self.image_size is None else self.image_size.split(",")
        found = [SizeOptions(side, self.embedding).spec(model) for side in sides]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class WeightOptions(SizeOptions):
    """Where a model's weights come from, and its input size."""

    checkpoint: Checkpoint = None
    weights: Weights = None
    seed: Seed = 0

    def find(self, model: str, terminal: Terminal) -> ModelSpec:
        """Return the model: for `auto` what the checkpoint holds, which is said."""
        from structsam.models.find_model import find_model

        found, told = find_model(model, self.checkpoint)
        if told:
            terminal.say(told)
        return found

    def of(self, model: ModelSpec, terminal: Terminal) -> ModelSource:
        """Return the model with these weights; says what random ones are good for."""
        return self._sources([self.spec(model)], terminal)[0]

    def of_sizes(self, model: ModelSpec, terminal: Terminal) -> list[ModelSource]:
        """Return the model with these weights at every size of a list."""
        return self._sources(self.specs(model), terminal)

    def _sources(self, specs: Sequence[ModelSpec], terminal: Terminal) -> list[ModelSource]:
        from structsam_export.bundle.weights_source import ModelSource

        if self.weights == "random":
            terminal.warn(random_note())
        return [
            ModelSource(
                spec.trained,
                self.checkpoint,
                self.weights,
                self.seed,
                spec.image_size if spec.trained_image_size else None,
                spec.embedding,
            )
            for spec in specs
        ]


def rate_list(text: str) -> tuple[float, ...]:
    """Read rates to compare, as typed; raises `UserError` where one is not a number."""
    parsed = parse_rates(text)
    return parsed if isinstance(parsed, tuple) else (parsed,)


def parse_rates(text: str) -> float | tuple[float, ...]:
    """Read one rate, or several, as typed.

    Raises:
        UserError: not a number.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"rate {text!r} is not a number. Use a share of the tokens, such as --rate 0.5"
        ) from None
    return rates[0] if len(rates) == 1 else rates


def prompt_awareness(prompt_aware: bool, prompt_form: str) -> str | None:
    """Read the two options together: the form, or None.

    Raises:
        UserError: a form for an encoder that takes no box.
    """
    if prompt_form != "rank" and not prompt_aware:
        raise UserError(f"--prompt-form {prompt_form} needs --prompt-aware. Add it")
    return prompt_form if prompt_aware else None


def refuse_beside(context: typer.Context, what: str, names: tuple[str, ...]) -> None:
    """Raise a `UserError` if one of these options was typed beside `what`, which decides it."""
    if option := _typed(context, names):
        raise UserError(f"{what} says what {option} would. Leave one of them out")


def refuse_without(context: typer.Context, needed: str, names: tuple[str, ...]) -> None:
    """Raise a `UserError` if one of these options was typed; they mean nothing without `needed`."""
    if option := _typed(context, names):
        raise UserError(f"{option} needs {needed}. Add it, or leave {option} out")


def _typed(context: typer.Context, names: tuple[str, ...]) -> str | None:
    """Return the first of these parameters that was typed, as an option."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            return "--" + name.replace("_", "-")
    return None


def make_terminal() -> Terminal:
    """Return what shows progress and results; loaded late, because `--help` needs none of it."""
    from structsam_export.cli.terminal import Terminal

    return Terminal()


def random_note() -> str:
    """Return the sentence about random weights."""
    from structsam_export.cli.terminal import RANDOM_NOTE

    return RANDOM_NOTE
