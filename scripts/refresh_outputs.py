#!/usr/bin/env python3
"""Run every `$ structsam-export` line of the pages and put what it prints below it.

    python scripts/refresh_outputs.py            # docs/commands.md, then README.md
    python scripts/refresh_outputs.py --only predict --only bench

The commands run in order in one empty folder, with 100 columns, as the tests run them. Only what
goes to standard output is shown, JSON lines left out. A block below `<!-- not run by the tests` is
left alone. `--only` runs all commands (later ones need earlier ones), and replaces fewer outputs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "commands.md", ROOT / "README.md")
BLOCK = re.compile(r"(^[^\n]*\n```console\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
NOT_RUN = "<!-- not run by the tests"


def printed(command: str, folder: Path) -> str:
    """Run one command line in `folder` and return its lines for people."""
    program = Path(sys.executable).with_name("structsam-export")
    print(f"$ {command}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [program, *shlex.split(command)[1:]],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not line.startswith("{")]
    return "\n".join(lines).strip("\n")


def refreshed(body: str, folder: Path, only: list[str]) -> str:
    """Return a console block with new outputs; text before the first command stays."""
    head, *parts = re.split(r"^(?=\$ )", body, flags=re.MULTILINE)
    for index, part in enumerate(parts):
        command = part.splitlines()[0][2:]
        if command.startswith("structsam-export "):
            output = printed(command, folder)
            if not only or shlex.split(command)[1] in only:
                parts[index] = f"$ {command}\n{output}\n" if output else f"$ {command}\n"
    return head + "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="a command; repeat it")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory(prefix="structsam-outputs-") as scratch:
        folder = Path(scratch)
        (folder / "structsam_export").mkdir()
        (folder / "structsam_export" / "assets").symlink_to(ROOT / "structsam_export" / "assets")
        for page in PAGES:

            def replace(match: re.Match[str]) -> str:
                above, body, end = match.groups()
                if above.startswith(NOT_RUN):
                    return match[0]
                return above + refreshed(body, folder, only) + end

            text = page.read_text(encoding="utf-8")
            page.write_text(BLOCK.sub(replace, text), encoding="utf-8")


if __name__ == "__main__":
    main()
