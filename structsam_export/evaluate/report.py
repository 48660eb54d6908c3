"""`structsam-export report`: results folders as one Markdown file and one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.evaluate.curves import draw_curves
from structsam_export.evaluate.gallery import LEAST_LOSS, draw_gallery, worst_cases
from structsam_export.evaluate.table import (
    RANDOM,
    findings,
    metric_titles,
    run_row,
    set_columns,
    summary_table,
)
from structsam_export.plot_style import DARK, LIGHT, require_matplotlib

if TYPE_CHECKING:
    from structsam.evaluation.summary import Summary

__all__ = ["summary_table", "write_report"]

#: Folder of the pictures that `report.md` shows.
_PICTURES = "report_files"


@dataclass(frozen=True)
class _Picture:
    """A picture in three forms: the file for Markdown, and data for the page, light and dark."""

    file: str
    data: bytes
    source: str
    dark: str
    title: str


def write_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    gallery: int = 12,
) -> list[Path]:
    """Write `report.md`, its pictures in `report_files/`, and `report.html`, which needs neither.

    Args:
        folders: results folders of `structsam-export evaluate`, a section each.
        out: where to write; `RESULTS-report` beside the first folder by default.
        title: heading; `Evaluation` by default.
        gallery: at most so many worst cases per folder.

    Returns:
        the files, `report.html` first.

    Raises:
        UserError: no folder given, one that holds no results, `out` is a results folder, or a
            missing library.
    """
    from structsam.evaluation.read_results import read_facts
    from structsam.evaluation.summary import RULES, summarise

    if not folders:
        raise UserError("no results folder is given. Give what `structsam-export evaluate` wrote")
    if gallery < 0:
        raise UserError(f"gallery {gallery} is out of range. Use 0 or more")
    target = _place_of_report([Path(folder) for folder in folders], out)
    for folder in folders:
        read_facts(Path(folder))  # a wrong folder is told first
    require_matplotlib()
    summaries = [summarise(folder) for folder in folders]
    sections = [_section(s, number, gallery) for number, s in enumerate(summaries, start=1)]
    random = [s.random_weights for s in summaries]
    context = {
        "title": title or "Evaluation",
        "sections": sections,
        "rules": RULES,
        "random": _random_words(random),
        "least_loss": LEAST_LOSS,
    }
    texts = {name: _render(name, context) for name in ("report.html", "report.md")}
    return _save(target, texts, [p for s in sections for p in s["pictures"]])


def _place_of_report(folders: Sequence[Path], out: str | Path | None) -> Path:
    """Return where the report goes: never among the rows of a record."""
    if out is None:
        named = folders[0].name not in ("", "..")
        first = folders[0] if named else folders[0].resolve()
        return first.with_name(f"{first.name}-report")
    records = {folder.resolve() / part for folder in folders for part in ("", "rows", "timing")}
    if Path(out).resolve() in records:
        raise UserError(
            f"{out} holds the results themselves, and a report would mix with them. Choose "
            "another `out=`"
        )
    return Path(out)


def _random_words(random: Sequence[bool]) -> str:
    if not any(random):
        return ""
    if all(random):
        return RANDOM
    which = ", ".join(str(number) for number, flag in enumerate(random, start=1) if flag)
    return f"In section {which}: {RANDOM[0].lower()}{RANDOM[1:]}"


def _section(summary: Summary, number: int, gallery: int) -> dict[str, Any]:
    facts = summary.facts
    curves = _curves(summary, number)
    worst, note = draw_gallery(summary, worst_cases(summary, gallery))
    cases = [
        _picture(f"{number}-worst-{order:02d}.jpg", data, case.title)
        for order, (case, data) in enumerate(worst, start=1)
    ]
    return {
        "number": number,
        "heading": facts["dataset"].get("title") or facts["dataset"].get("name") or "dataset",
        "random": RANDOM if summary.random_weights else "",
        "finding": findings(summary),
        "measured": measured(facts),
        "command": facts.get("command", ""),
        "metrics": list(metric_titles(summary).values()),
        "sets": set_columns(summary),
        "rows": [run_row(summary, run) for run in summary.runs],
        "left_out": facts.get("left_out") or [],
        "notes": summary.notes,
        "problems": summary.problem_lines(),
        "curves": curves,
        "cases": cases,
        "gallery_note": note,
        "no_cases": _why_no_cases(summary, gallery) if not cases else "",
        "pictures": [*([curves] if curves else []), *cases],
    }


def _why_no_cases(summary: Summary, gallery: int) -> str:
    if not gallery:
        return "None was asked for."
    if summary.baseline is None:
        return "There is no unmerged run to compare with."
    return f"No mask lost {LEAST_LOSS} of IoU or more against the unmerged model."


def measured(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what was measured, in pairs of a name and words."""
    model, dataset, protocol = facts["model"], facts["dataset"], facts["protocol"]
    machines = [run.get("machine") or facts.get("machine") or {} for run in facts["runs"]]
    weights = f"weights {model.get('weights')}"
    if model.get("sha256"):
        weights += f" (sha256 {model['sha256'][:12]}...)"
    found = [
        ("Dataset", f"{dataset.get('name')}, {dataset.get('images', '?')} images"),
        ("Model", f"{model.get('name')}, {weights}"),
        ("Protocol", str(protocol.get("title") or protocol.get("name"))),
        ("Prompt", prompt_words(protocol)),
        ("Objects", _object_words(protocol)),
        ("Machine", "; ".join(dict.fromkeys(map(_machine_words, machines)))),
        ("Written", f"{facts.get('created', '')} by structsam {facts.get('structsam', '')}"),
    ]
    return [(name, words) for name, words in found if words.strip()]


def prompt_words(protocol: dict[str, Any]) -> str:
    """Say how objects were prompted."""
    words = [str(protocol.get("prompt", ""))]
    if protocol.get("box_noise"):
        words.append(f"box noise {protocol['box_noise']:g}")
    words.append(
        "best of three masks by predicted IoU" if protocol.get("multimask") else "one mask"
    )
    if "seed" in protocol:
        words.append(f"seed {protocol['seed']}")
    return ", ".join(words)


def _object_words(protocol: dict[str, Any]) -> str:
    most = protocol.get("max_objects")
    words = [f"at most {most} per image, drawn by seed" if most else "all of an image"]
    if protocol.get("smallest"):
        words.append(f"of at least {100 * protocol['smallest']:g} % of the image")
    return ", ".join(words)


def _machine_words(machine: dict[str, Any]) -> str:
    words = [str(machine[key]) for key in ("cpu", "gpu", "board") if machine.get(key)]
    for key, name in (("threads", "threads"), ("usable_cores", "usable cores")):
        if machine.get(key):
            words.append(f"{machine[key]} {name}")
    versions = machine.get("versions") or {}
    words += [f"{name} {versions[name]}" for name in ("torch", "onnxruntime") if name in versions]
    return ", ".join(words)


def _curves(summary: Summary, number: int) -> _Picture | None:
    light, dark = draw_curves(summary, LIGHT), draw_curves(summary, DARK)
    if light is None or dark is None:
        return None
    title = "quality against tokens kept, multiply-adds and time"
    return _picture(f"{number}-curves.png", light, title, dark)


def _picture(file: str, data: bytes, title: str, dark: bytes | None = None) -> _Picture:
    kind = "png" if file.endswith("png") else "jpeg"
    sources = [
        f"data:image/{kind};base64,{base64.b64encode(each).decode()}" if each else ""
        for each in (data, dark)
    ]
    return _Picture(f"{_PICTURES}/{file}", data, sources[0], sources[1], title)


def _render(name: str, context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    template = name.replace("report", "evaluation")
    return environment.get_template(template).render(context)


def markdown_cell(text: str) -> str:
    """Keep text from breaking a table or becoming markup: names of files may hold anything.

    >>> markdown_cell("a|b_c")
    'a\\\\|b\\\\_c'
    """
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _save(out: Path, texts: dict[str, str], pictures: Sequence[_Picture]) -> list[Path]:
    files = []
    if pictures:
        with atomic.staged_folder(out / _PICTURES) as staged:
            for picture in pictures:
                (staged / Path(picture.file).name).write_bytes(picture.data)
        files = [out / picture.file for picture in pictures]
    for name, text in texts.items():
        atomic.write_text(out / name, text)
    return [*(out / name for name in texts), *files]
