"""METHODS: every token merging method. A new one is one file here and one line in the dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from structsam.errors import UserError
from structsam.methods.algm import ALGM
from structsam.methods.base import MergeMethod, RateAboveLimit
from structsam.methods.cubistmerge import CubistMerge
from structsam.methods.gradtome import GradToMe
from structsam.methods.options import method_options
from structsam.methods.pitome import PiToMe
from structsam.methods.structsam import StructSAM
from structsam.methods.tome import ToMe
from structsam.methods.tomesd import ToMeSD
from structsam.methods.vidtome import VidToMe

METHODS: dict[str, type[MergeMethod]] = {
    "structsam": StructSAM,
    "gradtome": GradToMe,
    "tome": ToMe,
    "tomesd": ToMeSD,
    "pitome": PiToMe,
    "vidtome": VidToMe,
    "algm": ALGM,
    "cubistmerge": CubistMerge,
}

__all__ = [
    "METHODS",
    "MergeMethod",
    "choose_methods",
    "find_method",
    "methods_allowing",
    "rate_limit",
    "rate_limits",
]

#: A grid that every method can cut, to ask a method for its limits.
_ANY_GRID = (16, 16)


def find_method(name: str) -> type[MergeMethod]:
    """Return the method of that name.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {name!r}. Choose one of: {', '.join(METHODS)}")
    return METHODS[name]


def rate_limit(method: type[MergeMethod], options: Mapping[str, Any]) -> float:
    """Return the largest rate that the method allows with these options.

    Raises:
        UserError: an option that has no such value.
    """
    return method(_ANY_GRID, 0.0, **options).rate_limit


def rate_limits(method: type[MergeMethod]) -> dict[str, float]:
    """Return the method's rate limit by default (key "") and per option value that changes it."""
    limits = {"": method.max_rate}
    for name, option in method_options(method).items():
        for value in option.choices:
            limit = rate_limit(method, {name: value})
            if limit != method.max_rate:
                limits[f"{name}={value}"] = limit
    return limits


def methods_allowing(rate: float) -> list[str]:
    """Name the methods that can remove this share of a map, with the option that it takes."""
    found = []
    for name, method in METHODS.items():
        allowed = [option for option, limit in rate_limits(method).items() if rate <= limit]
        if allowed:
            found.append(name if "" in allowed else f"{name} with {allowed[0]}")
    return found


RateAboveLimit.alternatives = staticmethod(methods_allowing)  # type: ignore[method-assign]


def choose_methods(text: str | Sequence[str]) -> list[str]:
    """Return the names in `all`, `a,b` or a sequence, each once, in that order.

    Raises:
        UserError: an unknown name, or none at all.
    """
    if isinstance(text, str):
        text = list(METHODS) if text == "all" else [part.strip() for part in text.split(",")]
    names = [find_method(name).name for name in dict.fromkeys(text)]
    if not names:
        raise UserError(f"no method was given. Choose from: {', '.join(METHODS)}, or say all")
    return names
