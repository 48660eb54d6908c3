"""The command `doctor`: what a bug report should say of a machine."""

from __future__ import annotations

import json

import typer

from structsam_export.cli.arguments import Json, make_terminal

NOTHING_WORKS = 1


def examine_machine(json_only: Json = False) -> None:
    """One page for bug reports: versions, GPU, Jetson, and which runtimes work; exit 1: none."""
    terminal = make_terminal()
    from structsam_export.doctor.examination import examine
    from structsam_export.doctor.page import page_lines

    found = examine(say=terminal.say)
    if json_only:
        print(json.dumps(found))
    else:
        for line in page_lines(found):
            terminal.print(line)
    raise typer.Exit(0 if found["works"] else NOTHING_WORKS)
