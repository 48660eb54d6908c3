"""What the command line shows: steps while they run, build progress, tables, one-line errors."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from structsam_export.bundle.files import size_text
from structsam_export.bundle.folder import Bundle
from structsam_export.cli.flags import in_flags
from structsam_export.cli.tables import fit

if TYPE_CHECKING:
    from structsam_export.engines.progress import BuildEvent
    from structsam_export.parity.compare import ParityReport

#: Columns of a table that is not printed on a screen.
WIDTH = 100

RANDOM_NOTE = "random weights: masks carry no meaning; use for latency only"


class Terminal:
    """Results go to stdout, everything else to stderr, so that `--json` output can be piped."""

    def __init__(self) -> None:
        self.out = Console(soft_wrap=True)
        self.err = Console(stderr=True, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: Any = None
        self._title = ""
        self._first, self._told = (0, 0.0), 0
        self._step: tuple[str, float] | None = None

    def say(self, text: str) -> None:
        """Announce a step; the time of the one before is shown with it."""
        self._end_step()
        self._step = (text, time.perf_counter())
        self.err.print(f"[dim]-[/dim] {escape(text)} ...", highlight=False)

    def _end_step(self) -> None:
        if self._step:
            seconds = time.perf_counter() - self._step[1]
            if seconds >= 1:
                self.err.print(f"[dim]    {seconds:.1f} s[/dim]", highlight=False)
            self._step = None

    def warn(self, text: str) -> None:
        """Print a line that must not be overlooked."""
        self.err.print(f"[yellow]note:[/yellow] {escape(in_flags(text))}", highlight=False)

    def print(self, text: str) -> None:
        """Print a plain line of results."""
        self._end_step()
        self.out.print(escape(in_flags(text)), highlight=False)

    def table(self, table: Table) -> None:
        """Print a table of results, in a log up to 100 columns wide; nothing of it is cut."""
        self._end_step()
        console = self.out if sys.stdout.isatty() else Console(width=WIDTH)
        for part in fit(table, console.width):
            console.print(part)

    def build_event(self, event: BuildEvent) -> None:
        """Show one step of an engine build as a progress bar."""
        title = f"{event.part} {event.target}"
        if event.kind in ("reused", "built"):
            self.close()
            self.err.print(f"    {title}: {escape(f'{event.kind}: {event.message}')}")
            return
        if event.kind in ("waiting", "started"):
            self.close()
            self.err.print(f"    {title}: {escape(event.message)}", highlight=False)
        self._bar(title, event.fraction * 100, 100)

    def bytes_done(self, done: int, total: int | None) -> None:
        """Show the progress of a download."""
        self._bar("download", done, total, DownloadColumn())

    def counted(self, title: str, done: int, total: int, with_rate: bool = False) -> None:
        """Show how much of a long step is done, with the time left and perhaps the rate."""
        if title != self._title:
            self.close()
            self._title, self._first, self._told = title, (done, time.perf_counter()), 0
        start, began = self._first
        elapsed = time.perf_counter() - began if done > start else 0.0
        rate = (done - start) / elapsed if elapsed else 0.0
        told = f"{rate:.2f} a second" if with_rate and rate else ""
        self._bar(title, done, total, MofNCompleteColumn(), note=told)
        if done == total:
            self.close()
            self.err.print(f"    {escape(title)}: {total} done", highlight=False)
        elif not self.err.is_terminal and 10 * done // total > self._told:
            self._told = 10 * done // total  # a log shows no bar: a line for every tenth
            text = f"    {escape(title)}: {done} of {total}"
            if rate:
                text += f", {told}" if told else ""
                text += f", {_duration((total - done) / rate)} left"
            self.err.print(text, highlight=False)

    def close(self) -> None:
        """End the live display, if there is one."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _bar(
        self, title: str, done: float, total: float | None, *columns: Any, note: str = ""
    ) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("    {task.description}"),
                BarColumn(),
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.err,
                transient=True,
            )
            self._task = self._progress.add_task(title, total=total, note=note)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, note=note)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def bundle_table(bundle: Bundle) -> Table:
    """Say what a bundle is, row by row."""
    from structsam.merging.attention_forms import USUAL

    manifest = bundle.manifest
    model, merging = bundle.model, manifest["merging"]
    table = Table(title=f"bundle {bundle.name}", show_header=False)
    known = f" (SHA-256 {model.sha256[:12]}...)" if model.sha256 else ": masks carry no meaning"
    table.add_row("model", f"{model.name}, {model.title}{known}")
    if model.size_text:
        table.add_row("input", model.size_text)
    rate = merging["rate"]
    shown = rate if isinstance(rate, (int, float)) else "per block"
    table.add_row("merging", f"{merging['method']}, rate {shown}, layers {merging['layers']}")
    own = [f"{name}={value}" for name, value in (merging.get("options") or {}).items()]
    if merging.get("placement", "attention") != "attention":
        own.append(f"placement {merging['placement']}")
    if merging.get("attention", "folded") not in USUAL:
        own.append(f"attention {merging['attention']}")
    own += [f"align {merging['align']}"] if merging.get("align", 1) > 1 else []
    own += ["proportional attention"] if merging.get("proportional") else []
    if own:
        table.add_row("options", ", ".join(own))
    if bundle.takes_box:
        form = merging["prompt_aware"]
        table.add_row("prompt box", f"second input of the encoder ({form}): one prompt an encoding")
    kinds: dict[str, dict[str, list[int]]] = {}
    for block in merging["blocks"]:
        sizes = kinds.setdefault(block["kind"], {})
        sizes.setdefault(f"{block['tokens']} -> {block['slots']}", []).append(block["index"])
    for kind, sizes in kinds.items():
        texts = list(sizes)
        if len(sizes) > 1:
            texts = [f"{text} in {', '.join(map(str, sizes[text]))}" for text in sorted(sizes)]
        count = sum(map(len, sizes.values()))
        table.add_row(f"tokens, {count} {kind} blocks", "; ".join(texts))
    flops = manifest["flops"]
    table.add_row("encoder", f"{flops['total_gmac']:.1f} GMAC")
    table.add_row("precision", bundle.precision)
    for name, record in bundle.files.items():
        if name.endswith((".onnx", ".data")):
            table.add_row(name, size_text(record.size))
    for engine in bundle.engines:
        table.add_row(engine.file, size_text(engine.size))
    return table


def parity_table(report: ParityReport) -> Table:
    """Show every row of a parity report."""
    table = Table(title="parity against merged PyTorch in FP32")
    for column in ("backend", "image", "status"):
        table.add_column(column)
    for column in ("cosine", "relative L2", "mask IoU", "min", "same slot"):
        table.add_column(column, justify="right")
    for row in report.rows:
        if not row.metrics:
            continue
        numbers = row.metrics
        color = "green" if row.status == "passed" else "red"
        table.add_row(
            row.backend,
            escape(row.image),
            f"[{color}]{row.status}[/{color}]",
            f"{numbers['cosine']:.7f}",
            f"{numbers['relative_l2']:.2e}",
            *(
                f"{numbers[name]:.5f}" if name in numbers else "no decoder"
                for name in ("mean_mask_iou", "min_mask_iou")
            ),
            f"{100 * numbers['same_slot']:.2f} %" if "same_slot" in numbers else "not compared",
        )
    lines = dict.fromkeys(
        f"{row.backend}{f' on {row.image}' if row.metrics else ''}: {row.status}: {row.reason}"
        for row in report.rows
        if row.reason
    )
    if lines:
        table.caption = escape("\n".join(lines))
        table.caption_justify = "left"
    return table
