"""Options of methods: read from the class, typed, checked, parsed; each of them does something."""

from __future__ import annotations

import math

import pytest
import torch

from structsam.errors import UserError
from structsam.methods import METHODS
from structsam.methods.options import known_options, method_options, parse_options
from tests.structsam import method_contract as contract
from tests.structsam.token_maps import random_tokens, smooth_tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")

EXPECTED = {
    "structsam": {
        "operator": ("sobel", "central"),
        "flatness": ("max", "mean"),
        "cells": ("flat", "random"),
        "destination": ("min", "max", "random"),
        "variant": ("cell", "no_cell"),
        "cell_size": (2, 4),
        "channels": ("head_mean", "all"),
        "seed": int,
    },
    "gradtome": {"operator": ("sobel", "central"), "variant": ("grid", "sorted")},
    "tome": {},
    "tomesd": {
        "destinations": ("rand2x2", "stride", "rand25"),
        "feature": ("mean", "replace"),
        "seed": int,
    },
    "pitome": {
        "margin": float,
        "schedule": ("constant", "linear"),
        "alpha": float,
        "variant": ("protected", "stride"),
    },
    "vidtome": {"frames": ("phase", "rows"), "feature": ("replace", "mean"), "seed": int},
    "algm": {"stages": ("local", "local+global")},
    "cubistmerge": {
        "feature": ("max_magnitude", "mean"),
        "positions": ("structured", "original"),
    },
}
every_option = pytest.mark.parametrize(
    ("name", "key"), [(n, k) for n, m in METHODS.items() for k in method_options(m)]
)


def test_the_options_are_those_of_the_issue() -> None:
    found = {
        name: {k: o.choices or o.kind for k, o in method_options(method).items()}
        for name, method in METHODS.items()
    }
    assert found == EXPECTED


@every_option
def test_defaults_are_allowed_values_and_described(name, key) -> None:
    option = method_options(METHODS[name])[key]
    option.check(option.default, name)
    assert getattr(METHODS[name]((16, 16), 0.25), key) == option.default
    assert f"{key}:" in (METHODS[name].__doc__ or "")


@every_option
@pytest.mark.parametrize("value", [None, "nosuch", True, math.nan, math.inf, [2], 10**400, -1])
def test_other_values_are_refused_with_what_is_allowed(name, key, value) -> None:
    option = method_options(METHODS[name])[key]
    if option.kind is float and value == -1:
        return
    with pytest.raises(UserError, match=f"'{key}'.*'{name}'") as caught:
        METHODS[name]((16, 16), 0.25, **{key: value})
    assert all(str(choice) in str(caught.value) for choice in option.choices)


@every_option
def test_typed_text_becomes_the_value(name, key) -> None:
    option = method_options(METHODS[name])[key]
    for value in option.choices or contract.NUMBERS[option.kind]:
        found = parse_options(METHODS[name], [f"{key}={value}"])
        assert found == {key: value}
        assert type(found[key]) is type(value)
        assert known_options(METHODS[name], found) == found
    for text in (f"{key}", f"{key}=nosuch", f"{key}="):
        with pytest.raises(UserError, match=key):
            parse_options(METHODS[name], [text])


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'gradtome' has no option 'nosuch'.*operator, variant"):
        parse_options(METHODS["gradtome"], ["nosuch=1"])
    with pytest.raises(UserError, match="'tome' has no option 'operator'.*none"):
        known_options(METHODS["tome"], {"operator": "sobel"})
    for common in ("rate", "grid", "align", "layer", "depth"):
        with pytest.raises(UserError, match="no option"):
            known_options(METHODS["tome"], {common: 1})


def outcome(name, **options):
    """What an option can change: the plan, its features, its positions, or what is compared."""
    grid = (16, 16)
    common = {"layer": 1, "depth": 4} if name == "pitome" else {}
    if options.get("schedule"):
        options["margin"] = 0.9
    method = METHODS[name](grid, 0.4, **common, **options)
    # random enough that every rule matters, smooth enough that margins do
    tokens = smooth_tokens(1, 256) + 0.3 * random_tokens(1, 256)
    plan = method.plan(tokens)
    tables = [plan.slot_of_token, plan.anchor_of_slot]
    return [t.tolist() for t in tables] + [
        plan.merge(tokens).tolist(),
        plan.slot_grid,
        method.metric,
    ]


@every_option
def test_every_value_of_every_option_does_something_of_its_own(name, key) -> None:
    option = method_options(METHODS[name])[key]
    values = option.choices or contract.NUMBERS[option.kind]
    extra = {"cells": "random"} if (name, key) == ("structsam", "seed") else {}
    found = [outcome(name, **extra, **{key: value}) for value in values]
    for i, one in enumerate(found):
        assert all(one != other for other in found[:i]), f"{key}={values[i]} is as another"


def test_the_same_seed_is_the_same_table_whatever_the_global_state() -> None:
    for name in ("tomesd", "vidtome"):
        first = METHODS[name]((14, 14), 0.5, seed=3).destination_positions()
        torch.manual_seed(5)
        again = METHODS[name]((14, 14), 0.5, seed=3).destination_positions()
        assert first.tolist() == again.tolist()
