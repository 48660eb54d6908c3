"""Options of merging methods: read from the fields of their dataclasses, typed, checked, parsed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from structsam.errors import UserError

#: Fields of every method, which are no options.
_COMMON = ("grid", "rate", "align", "layer", "depth")
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Option:
    """One option: `choices` for a choice, else numbers of type `kind` (int or float)."""

    name: str
    default: Any
    kind: type
    choices: tuple[Any, ...] = ()

    def check(self, value: Any, method: str) -> None:
        """Refuse a value that the option cannot have.

        Raises:
            UserError: naming what it can be.
        """
        if self.choices:
            good = value in self.choices and type(value) is type(self.choices[0])
            wanted = f"one of: {', '.join(map(str, self.choices))}"
        else:
            # whole numbers are seeds, and numpy takes no others; comparing refuses NaN as well
            numbers, least = ((int, float), -_LARGEST) if self.kind is float else ((int,), 0)
            good = isinstance(value, numbers) and not isinstance(value, bool)
            good = good and least <= value <= _LARGEST
            wanted = "a number" if self.kind is float else f"a whole number from 0 to {_LARGEST}"
        if not good:
            raise UserError(f"option {self.name!r} of method {method!r} is {value!r}. Use {wanted}")


def method_options(method: type) -> dict[str, Option]:
    """Return the options of a method class by name, in the order of its fields."""
    hints = typing.get_type_hints(method)
    found = {}
    for field in dataclasses.fields(method):
        if field.name in _COMMON:
            continue
        hint = hints[field.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        kind = type(choices[0]) if choices else hint
        found[field.name] = Option(field.name, field.default, kind, choices)
    return found


def check_options(method: Any) -> None:
    """Refuse option values that the method's fields do not allow.

    Raises:
        UserError: naming the option and what it can be.
    """
    for name, option in method_options(type(method)).items():
        option.check(getattr(method, name), method.name)


def known_options(method: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` as they are when the method class has them all.

    Raises:
        UserError: an option that the method has not, or a value that it cannot have.
    """
    known = method_options(method)
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"method {method.name!r} has no option {name!r}. "
                + (f"It has: {', '.join(known)}" if known else "It has none")
            )
        known[name].check(value, method.name)
    return dict(options)


def parse_options(method: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Read options as typed on a command line: `operator=central`, `margin=0.5`.

    Raises:
        UserError: no `name=value`, an unknown option, or a value that it cannot have.
    """
    known, values = method_options(method), {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"option {text!r} has no value. Write it as name=value")
        if name in values:
            raise UserError(f"option {name!r} is given twice. Give it once")
        kind = known[name].kind if name in known else str
        try:
            values[name] = kind(value)
        except ValueError:
            values[name] = value  # refused below, with what it can be
    return known_options(method, values)
