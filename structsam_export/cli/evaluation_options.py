"""Options of `evaluate`: which data, which mergings, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    Methods,
    Options,
    PromptAware,
    PromptForm,
    Proportional,
    RecipeFile,
    prompt_awareness,
    rate_list,
)

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.evaluation.evaluate import Setting
    from structsam.evaluation.metrics.base import MaskMetric
    from structsam.models import ModelSpec


@dataclass(frozen=True)
class Data:
    """The images and objects."""

    dataset: Annotated[str, typer.Option(help="Layout of --root; see `list`.")] = "folder"
    root: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None
    boxes: Annotated[Path | None, typer.Option(help="COCO: boxes of a detector, JSON.")] = None

    def open(self) -> Any:
        """Return the dataset; raises `UserError` where it is not one."""
        from structsam.evaluation.datasets import open_dataset

        if self.root is None:
            raise UserError("--root is missing: give the folder of the dataset, and its --dataset")
        more = {} if self.boxes is None else {"boxes": self.boxes}
        return open_dataset(self.dataset, self.root, **more)


@dataclass(frozen=True)
class Compared:
    """The mergings beside the unmerged model: every combination, and a recipe's."""

    methods: Methods = "structsam"
    rates: Annotated[str, typer.Option(help="Such as 0.25,0.5; the unmerged comes first.")] = "0.5"
    layers: Annotated[
        list[str] | None,
        typer.Option(help="all, global, window, or block indices such as 7,8,9; repeat it."),
    ] = None
    placement: Annotated[
        list[str] | None, typer.Option(help="attention, block or stage; repeat it.")
    ] = None
    option: Options = None
    recipe: RecipeFile = None
    proportional: Proportional = False
    prompt_aware: PromptAware = False
    prompt_form: PromptForm = "rank"

    def configs(self, spec: ModelSpec) -> tuple[list[MergeConfig], list[dict[str, str]]]:
        """Return what can be done with the model, and what is left out with the reason."""
        from structsam.methods import choose_methods
        from structsam_export.merging_choices import merge_configs
        from structsam_export.tune.recipe import read_recipe

        names = choose_methods(self.methods)
        if self.option and len(names) > 1:
            raise UserError("--option belongs to one method. Name it with --methods, not several")
        shared: dict[str, Any] = {
            "proportional": self.proportional,
            "prompt_aware": prompt_awareness(self.prompt_aware, self.prompt_form),
        }
        configs, left_out = merge_configs(
            spec,
            names,
            rate_list(self.rates),
            self.layers or ["all"],
            self.placement or ["attention"],
            options=self.option or (),
            **shared,
        )
        if self.recipe is not None:
            configs.append(read_recipe(self.recipe).config(spec, **shared))
        return configs, left_out


@dataclass(frozen=True)
class Scoring:
    """How objects are prompted and masks are judged."""

    protocol: Annotated[
        str, typer.Option(help="sam, hqsam or medsam; auto: as papers score the dataset.")
    ] = "auto"
    prompt: Annotated[str, typer.Option(help="box, click or three-click.")] = "box"
    box_noise: Annotated[float, typer.Option(help="Of box corners, share of its sides.")] = 0.0
    multimask: Annotated[
        bool | None,
        typer.Option(help="Best of three masks by predicted IoU; default with --boxes."),
    ] = None
    metrics: Annotated[str, typer.Option(help="Of every mask; see `list`.")] = (
        "iou,boundary_iou,dice,nsd"
    )
    max_objects: Annotated[
        int | None, typer.Option(min=0, help="Per image; 0: all. Default 10, all with --boxes.")
    ] = None
    smallest: Annotated[
        float | None, typer.Option(help="Area that an object needs. Default 0.001, 0 with --boxes.")
    ] = None

    def setting(self, data: Data, seed: int, workers: int, strict: bool) -> Setting:
        """Return what is asked of every run alike.

        Raises:
            UserError: no dataset, an unknown name, or options that exclude each other.
        """
        from structsam.evaluation.evaluate import Setting
        from structsam.evaluation.prompts import Prompting
        from structsam.evaluation.protocols import find_protocol

        detected = data.boxes is not None
        if detected and self.prompt != "box":
            raise UserError("--boxes gives box prompts. Leave --prompt out")
        if detected and (self.max_objects or self.smallest):
            raise UserError(
                "average precision needs all boxes. Leave --max-objects and --smallest out"
            )
        opened = data.open()
        multimask = detected if self.multimask is None else self.multimask
        smallest, most = (0.0, None) if detected else (0.001, 10)
        return Setting(
            opened,
            find_protocol(opened.protocol if self.protocol == "auto" else self.protocol),
            _mask_metrics(self.metrics),
            Prompting(self.prompt, self.box_noise, seed, multimask),  # type: ignore[arg-type]
            smallest if self.smallest is None else self.smallest,
            most if self.max_objects is None else self.max_objects or None,
            workers,
            strict,
            data.limit,
        )


def _mask_metrics(names: str) -> list[MaskMetric]:
    """Read metric names; those that need several masks are no columns of one mask's row."""
    from structsam.evaluation.metrics import MaskMetric, find_metric

    found = []
    for name in dict.fromkeys(part.strip() for part in names.split(",")):
        metric = find_metric(name)()
        if not isinstance(metric, MaskMetric) or metric.reference != "truth":
            raise UserError(f"{name} comes with every summary. Leave it out of --metrics")
        found.append(metric)
    return found
