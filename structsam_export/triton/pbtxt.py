"""Protobuf's text format, as far as `config.pbtxt` needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]


class Word(str):
    """A value that is written without quotes: the name of an enum's entry."""


def pbtxt(message: Message) -> str:
    """Write a message: a mapping is a message in it, a list a repeated field, in their order.

    Fields of type map are lists of {"key": ..., "value": ...}.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        each = value if isinstance(value, list) else [value]
        if not all(isinstance(part, Mapping) for part in each):
            text = ", ".join(map(_scalar, each))
            yield f"{indent}{name}: {f'[{text}]' if isinstance(value, list) else text}"
            continue
        for part in each:
            yield f"{indent}{name} {{"
            yield from _lines(part, indent + "  ")
            yield f"{indent}}}"


def _scalar(value: object) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str | bool | int):
        return json.dumps(value, ensure_ascii=False)  # quotes and escapes are those of C
    raise TypeError(f"{type(value).__name__} has no place in config.pbtxt")
