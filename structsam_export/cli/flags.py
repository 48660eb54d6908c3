"""Python messages name parameters, such as `out=` or `rate=0.5`; a command line has options."""

from __future__ import annotations

import re

_PARAMETER = re.compile(r"`([a-z_]+)=([^`]*)`")
#: Parameters whose option has another name: of one value where it is repeated, without the unit.
_NAMES = {
    "boxes": "box",
    "images": "image",
    "points": "point",
    "tactic_memory_mb": "tactic_memory",
    "targets": "target",
    "workspace_mb": "workspace",
}


def in_flags(message: str) -> str:
    """Write the parameters in a message as options.

    >>> in_flags("Use `rate=0.5` or less, or choose another `out=`")
    'Use --rate 0.5 or less, or choose another --out'
    >>> in_flags("pass `weights='random'`, or add `force=True`")
    'pass --weights random, or add --force'
    """
    return _PARAMETER.sub(_flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = found.groups()
    flag = "--" + _NAMES.get(name, name).replace("_", "-")
    value = "" if value == "True" else value.strip("'\"")
    return f"{flag} {value}".strip()
