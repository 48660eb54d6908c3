"""Debug lines of both packages on stderr: `--verbose` anywhere, or STRUCTSAM_VERBOSE=1."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from structsam_export.machine import version_lines

VARIABLE = "STRUCTSAM_VERBOSE"
_PACKAGES = ("structsam", "structsam_export")

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show debug lines, and tracebacks of errors.")
]


class _ToStderr(logging.StreamHandler):
    """Writes to what is stderr when a line comes, not when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def set_verbose(on: bool) -> None:
    """Show debug lines of our packages, or none."""
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.DEBUG if on else logging.NOTSET)
        logger.handlers = [h for h in logger.handlers if not isinstance(h, _ToStderr)]
        if on:
            handler = _ToStderr()
            handler.setFormatter(logging.Formatter("%(relativeCreated)7d ms %(name)s: %(message)s"))
            logger.addHandler(handler)
    if on:
        logging.getLogger(_PACKAGES[-1]).debug("; ".join(version_lines()))


def is_verbose() -> bool:
    """Whether debug lines are shown."""
    return logging.getLogger(_PACKAGES[0]).isEnabledFor(logging.DEBUG)


def verbose_by_environment() -> bool:
    """Whether the environment asks for debug lines."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def takes_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--verbose` as its last option."""

    @functools.wraps(command)
    def verbosely(*arguments: Any, verbose: bool = False, **named: Any) -> None:
        if verbose:
            set_verbose(True)
        command(*arguments, **named)

    own = inspect.signature(command, eval_str=True)
    last = inspect.Parameter(
        "verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose
    )
    verbosely.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), last]
    )
    verbosely.__annotations__ = {
        name: parameter.annotation for name, parameter in own.parameters.items()
    } | {"verbose": Verbose}
    return verbosely
