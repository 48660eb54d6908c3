"""How a command that did not do its work ends: one line and exit code 2, or a traceback.

A user's or the machine's problem is one line. Anything else is a fault of the program, which keeps
its traceback. With `--verbose` everything has one.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from typing import Any

from typer._click.exceptions import NoArgsIsHelpError
from typer.exceptions import TyperException

from structsam.errors import UserError
from structsam_export.bundle.atomic import MENDABLE
from structsam_export.cli.flags import in_flags
from structsam_export.cli.logs import is_verbose
from structsam_export.cli.signals import name_and_code

FAILED = 2

#: The optional packages, by the name that is imported: the extra that installs them.
EXTRA_OF = {
    "torch": "export", "torchvision": "export", "segment_anything": "export",
    "safetensors": "export", "onnx": "export", "onnxscript": "export", "onnx_ir": "export",
    "onnxruntime": "cpu", "openvino": "openvino", "tensorrt": "tensorrt", "cuda": "tensorrt",
    "tensorrt_rtx": "rtx",
    "matplotlib": "eval", "scipy": "eval", "pycocotools": "eval",
    "pydicom": "eval", "transformers": "hf",
    "fastapi": "serve", "uvicorn": "serve", "python_multipart": "serve",
    "prometheus_client": "serve", "polygraphy": "polygraphy", "onnx_graphsurgeon": "polygraphy",
    "ray": "ray",
}  # fmt: skip


class CommandFailed(UserError):
    """The command failed, and has facts to tell beside the message.

    Args:
        message: one line.
        facts: JSON-ready; with `--json` they stand beside the error.
    """

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


def end_with(error: BaseException, as_json: bool) -> int:
    """Tell what went wrong on stderr, with `as_json` on stdout as well; return the exit code."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return FAILED
    message = one_line(error)
    if message is None or (is_verbose() and not isinstance(error, KeyboardInterrupt)):
        traceback.print_exception(error)
    if message is None:
        message = f"{type(error).__name__}: {error}"
        print("error: this is a fault of structsam-export, see above", file=sys.stderr)
    else:
        print(f"error: {message}", file=sys.stderr)
    code = name_and_code()[1] if isinstance(error, KeyboardInterrupt) else FAILED
    if as_json:
        facts = error.facts if isinstance(error, CommandFailed) else {}
        print(json.dumps({**facts, "error": message, "exit_code": code}))
    return code


def one_line(error: BaseException) -> str | None:
    """Say in one line what the user can mend, or None where the fault is ours."""
    if isinstance(error, KeyboardInterrupt):
        return f"{name_and_code()[0]}; finished files are kept, half-written ones are removed"
    if isinstance(error, UserError):
        return in_flags(str(error))
    if isinstance(error, TyperException):
        return _usage(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, MemoryError):
        return "not enough memory. Close other programs, or use a smaller model"
    if isinstance(error, OSError) and error.filename is not None and error.errno in MENDABLE:
        return f"{error.strerror}: {error.filename}"
    return None


def _usage(error: TyperException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} See {context.command_path} --help" if context else message


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """Name the extra of an optional package that is not installed; None for any other module."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF or _is_installed(package):
        return None
    extra = f"structsam[{EXTRA_OF[package]}]"
    return f"{package} is not installed. Install it with `pip install '{extra}'`"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
