"""The commands of `structsam-export` that measure what merging costs: `evaluate` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structsam.errors import UserError
from structsam_export.cli.arguments import (
    BackendName,
    Checkpoint,
    Json,
    Methods,
    Options,
    PromptAware,
    PromptForm,
    Proportional,
    Reuse,
    ScheduleFile,
    Seed,
    Threads,
    Weights,
    make_terminal,
    parse_rates,
    prompt_awareness,
    random_note,
    refuse_beside,
)

if TYPE_CHECKING:
    from structsam.evaluation.metrics.base import MaskMetric


#: What a bundle decides.
_OF_A_MODEL = (
    "model", "checkpoint", "weights", "methods", "rates", "layers", "placement", "reuse", "option",
    "schedule", "proportional", "prompt_aware", "prompt_form", "precision",
)  # fmt: skip


def evaluate(
    context: typer.Context,
    bundle: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Instead of --model.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Layout of --root; see `list`.")] = "folder",
    root: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    model: Annotated[str, typer.Option(help="vit_b, vit_l, vit_h, medsam or vit_t.")] = "vit_t",
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    methods: Methods = "structsam",
    rates: Annotated[str, typer.Option(help="Such as 0.25,0.5; the unmerged comes first.")] = "0.5",
    layers: Annotated[
        list[str] | None,
        typer.Option(help="all, global, window, or block indices such as 7,8,9; repeat it."),
    ] = None,
    placement: Annotated[
        list[str] | None, typer.Option(help="attention, block or stage; repeat it.")
    ] = None,
    reuse: Reuse = 1,
    option: Options = None,
    schedule: ScheduleFile = None,
    proportional: Proportional = False,
    prompt_aware: PromptAware = False,
    prompt_form: PromptForm = "rank",
    protocol: Annotated[
        str, typer.Option(help="sam, hqsam or medsam; auto: as papers score the dataset.")
    ] = "auto",
    prompt: Annotated[str, typer.Option(help="box, click or three-click.")] = "box",
    box_noise: Annotated[float, typer.Option(help="Of box corners, share of its sides.")] = 0.0,
    multimask: Annotated[
        bool | None,
        typer.Option(help="Best of three masks by predicted IoU; default with --boxes."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Of every mask; see `list`.")
    ] = "iou,boundary_iou,dice,nsd",
    max_objects: Annotated[
        int | None, typer.Option(min=0, help="Per image; 0: all. Default 10, all with --boxes.")
    ] = None,
    smallest: Annotated[
        float | None, typer.Option(help="Area that an object needs. Default 0.001, 0 with --boxes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="COCO: boxes of a detector, JSON.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16, of --model.")] = "fp32",
    backend: BackendName = "auto",
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode and score.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first problem.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    json_only: Json = False,
) -> None:
    """Quality on a dataset, merged beside unmerged; asked again, it goes on or adds rows."""
    terminal = make_terminal()
    if weights == "random":
        terminal.warn(random_note())
    if bundle:
        refuse_beside(context, "a bundle", _OF_A_MODEL)
    if root is None:
        raise UserError("--root is missing: give the folder of the dataset, and its --dataset")
    from structsam.evaluation.datasets import open_dataset
    from structsam.evaluation.evaluate import Setting
    from structsam.evaluation.prompts import Prompting
    from structsam.evaluation.protocols import find_protocol
    from structsam_export.evaluate.runs import bundle_runs, evaluate_runs

    if boxes is not None and prompt != "box":
        raise UserError("--boxes gives box prompts. Leave --prompt out")
    if boxes is not None and (max_objects or smallest):
        raise UserError("average precision needs all boxes. Leave --max-objects and --smallest out")
    chosen_of_three = boxes is not None if multimask is None else multimask
    opened = open_dataset(dataset, root, **({} if boxes is None else {"boxes": boxes}))
    setting = Setting(
        opened,
        find_protocol(opened.protocol if protocol == "auto" else protocol),
        _mask_metrics(metrics),
        Prompting(prompt, box_noise, seed, chosen_of_three),  # type: ignore[arg-type]
        (0.001 if boxes is None else 0.0) if smallest is None else smallest,
        (10 if boxes is None else None) if max_objects is None else max_objects or None,
        workers,
        strict,
    )
    left_out: list[dict[str, str]] = []
    if bundle:
        facts, runs = bundle_runs(bundle, backend, threads)
    else:
        merging = {
            "options": option or (),
            "schedule": schedule,
            "reuse": reuse,
            "proportional": proportional,
            "prompt_aware": prompt_awareness(prompt_aware, prompt_form),
        }
        facts, runs, left_out = _model_runs(
            model, methods, rates, layers, placement, merging,
            checkpoint=checkpoint, weights=weights, seed=seed, precision=precision,
            threads=threads,
        )  # fmt: skip
    for entry in left_out:
        terminal.warn(f"{entry['name']} is left out: {entry['reason']}")
    try:
        evaluate_runs(facts, runs, setting, out, limit, left_out, terminal.counted)
    finally:
        terminal.close()
    _show_summary(terminal, out, json_only)


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


def _model_runs(
    model: str,
    methods: str,
    rates: str,
    layers: list[str] | None,
    placement: list[str] | None,
    merging: dict[str, Any],
    **more: Any,
) -> tuple[dict[str, Any], list[Any], list[dict[str, str]]]:
    from structsam.methods import choose_methods, find_method
    from structsam.methods.options import parse_options
    from structsam.models import model_spec
    from structsam_export.evaluate.runs import model_runs
    from structsam_export.merging_choices import merge_configs
    from structsam_export.tune.schedule_file import read_schedule

    names = choose_methods(methods)
    if merging["options"] and len(names) > 1:
        raise UserError("--option belongs to one method. Name it with --methods, not several")
    merging["options"] = parse_options(find_method(names[0]), merging["options"])
    schedule = merging.pop("schedule")
    parsed = parse_rates(rates)
    configs, left_out = merge_configs(
        model_spec(model),
        names,
        parsed if isinstance(parsed, tuple) else (parsed,),
        layers or ["all"],
        placement or ["attention"],
        **merging,
    )
    if schedule is not None:
        more_of_it = {name: value for name, value in merging.items() if name != "options"}
        configs.append(read_schedule(schedule).config(model, **more_of_it))
    return *model_runs(model, configs, **more), left_out


def _show_summary(terminal: Any, out: Path, json_only: bool) -> None:
    from structsam.evaluation.summary import summarise
    from structsam_export.bundle.atomic import write_text
    from structsam_export.evaluate.report import summary_table

    summary = summarise(out)
    text = json.dumps(summary.to_dict(), indent=1)
    write_text(out / "summary.json", text + "\n")
    if json_only:
        print(json.dumps(summary.to_dict()))
        return
    terminal.table(summary_table(summary))
    for line in summary.problem_lines():
        terminal.warn(line)
    terminal.print(f"{out}: rows per mask in rows/, tables with `structsam-export report {out}`")


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="From `evaluate`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.md and report.html; RESULTS-report by default."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    gallery: Annotated[int, typer.Option(min=0, help="Worst cases to show.")] = 12,
) -> None:
    """Tables with intervals, curves, and pictures of the worst cases, as Markdown and HTML."""
    terminal = make_terminal()
    from structsam_export.evaluate.report import write_report

    for path in write_report(results, out, title=title, gallery=gallery):
        terminal.print(str(path))
