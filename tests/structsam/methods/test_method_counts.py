"""How many tokens a method removes: the same for all, never fewer than asked, or refused."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.methods import METHODS, methods_allowing, rate_limits
from tests.structsam import method_contract as contract
from tests.structsam import naive_plan as naive
from tests.structsam import naive_structsam

GRIDS = [(14, 14), (16, 16), (6, 10), (64, 64)]
every_method = pytest.mark.parametrize("name", METHODS)
#: methods.md 0.4, tokens left of a 14x14 window and of the 64x64 grid.
SLOTS = {
    0.0: (196, 4096),
    0.25: (145, 3070),
    0.35: (127, 2662),
    0.45: (106, 2251),
    0.5: (97, 2047),
    0.55: (88, 1843),
    0.6: (76, 1636),
    0.65: (67, 1432),
    0.7: (58, 1228),
    0.75: (49, 1024),
}
#: methods.md 0.4 and the issue's table: the largest rate, by option where one changes it.
LIMITS = {
    "structsam": {"": 0.75, "cell_size=4": 15 / 16},
    "gradtome": {"": 0.75, "variant=sorted": 0.5},
    "tome": {"": 0.5},
    "tomesd": {"": 0.75},
    "pitome": {"": 0.5, "variant=stride": 0.75},
    "vidtome": {"": 0.75},
    "algm": {"": 0.75, "stages=local+global": 0.875},
    "cubistmerge": {"": 0.75},
}
#: (cap in tokens of N, common step, step in any case) of each method and option.
COUNTING = {
    ("structsam", ""): (lambda n: 3 * (n // 4), 3, 3),
    ("structsam", "cell_size=4"): (lambda n: 15 * (n // 16), 15, 15),
    ("structsam", "variant=no_cell"): (lambda n: 3 * (n // 4), 3, 3),
    ("gradtome", ""): (lambda n: 3 * n // 4, 3, 1),
    ("gradtome", "variant=sorted"): (lambda n: n // 2, 3, 1),
    ("tome", ""): (lambda n: n // 2, 3, 1),
    ("tomesd", "destinations=stride"): (lambda n: 3 * n // 4, 3, 1),
    ("tomesd", "destinations=rand25"): (lambda n: 3 * n // 4, 3, 1),
    ("pitome", ""): (lambda n: n // 2, 3, 1),
    ("pitome", "variant=stride"): (lambda n: 3 * n // 4, 3, 1),
    ("vidtome", ""): (lambda n: 3 * n // 4, 3, 1),
    ("algm", ""): (lambda n: 3 * (n // 4), 3, 3),
    ("algm", "stages=local+global"): (lambda n: 7 * n // 8, 3, 1),
}


def chosen(text):
    """`cell_size=4` as keyword arguments."""
    key, _, value = text.partition("=")
    return {key: int(value) if value.isdigit() else value} if key else {}


def test_the_limits_are_those_of_the_literature() -> None:
    assert {name: rate_limits(method) for name, method in METHODS.items()} == LIMITS


@pytest.mark.parametrize(("rate", "slots"), SLOTS.items())
def test_structsam_keeps_as_many_as_published(rate, slots) -> None:
    for grid, expected in zip([(14, 14), (64, 64)], slots, strict=True):
        assert METHODS["structsam"](grid=grid, rate=rate).num_slots == expected
        assert naive_structsam.num_slots(grid, rate) == expected


@pytest.mark.parametrize(("rate", "removed"), [(0.07, 63), (0.14, 126), (0.28, 252), (0.56, 504)])
def test_a_rounded_product_merges_no_cell_too_many(rate, removed) -> None:
    assert rate * 900 > removed, "the float product is above the exact one"
    for name in METHODS:
        if rate <= METHODS[name].max_rate and name != "cubistmerge":
            assert METHODS[name]((30, 30), rate).num_removed == removed


@pytest.mark.parametrize("grid", [*GRIDS, (30, 30)])
@pytest.mark.parametrize(("name", "options"), COUNTING)
def test_counts_agree_with_exact_arithmetic(name, options, grid) -> None:
    n = grid[0] * grid[1]
    cap, step, finest = COUNTING[name, options]
    limit = LIMITS[name].get(options, LIMITS[name][""])
    for thousandths in range(0, math.floor(1000 * limit) + 1, 3 if n < 300 else 13):
        rate = thousandths / 1000
        assert_count(name, options, grid, rate, 1, (cap(n), step, finest))


@pytest.mark.parametrize("align", [1, 2, 8, 16])
@pytest.mark.parametrize(("name", "options"), COUNTING)
def test_counts_with_align(name, options, align) -> None:
    cap, step, finest = COUNTING[name, options]
    limit = LIMITS[name].get(options, LIMITS[name][""])
    for grid, percent in [(g, p) for g in GRIDS for p in range(0, int(100 * limit) + 1, 3)]:
        limits = (cap(grid[0] * grid[1]), step, finest)
        assert_count(name, options, grid, percent / 100, align, limits)


def assert_count(name, options, grid, rate, align, limits) -> None:
    n, (cap, step, finest) = grid[0] * grid[1], limits
    if options == "cell_size=4" and (grid[0] % 4 or grid[1] % 4):
        return
    try:
        expected = naive.num_removed(n, rate, cap, align, finest, step)
    except ValueError:
        with pytest.raises(UserError, match=f"{name}.*cannot remove"):
            METHODS[name](grid, rate, align, **chosen(options))
        return
    method = METHODS[name](grid, rate, align, **chosen(options))
    assert method.num_removed == expected
    assert method.num_slots == n - expected
    assert type(method.num_removed) is type(method.num_slots) is int


@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(METHODS)),
    grid=st.sampled_from(GRIDS),
    rate=st.floats(0, 1, allow_nan=False),
    align=st.sampled_from([1, 8, 16]),
    data=st.data(),
)
def test_any_rate_is_kept_or_refused(name, grid, rate, align, data) -> None:
    options = data.draw(st.sampled_from(contract.combinations(name)))
    try:
        method = METHODS[name](grid, rate, align, **options)
    except UserError as refusal:
        text = str(refusal)
        assert "\n" not in text
        assert re.search(r"Use .*", text), "says what to do"
        return
    n = grid[0] * grid[1]
    assert method.num_slots + method.num_removed == n
    assert method.num_slots % align == 0
    if name == "cubistmerge" and align == 1:
        lines = max(grid)
        assert abs(method.num_removed - rate * n) <= lines, "whole lines, the nearest"
    else:
        assert method.num_removed >= rate * n - 1e-9
    assert method.num_removed <= method.max_removed < n


@pytest.mark.parametrize("grid", GRIDS)
def test_at_one_rate_all_methods_keep_equally_many(grid) -> None:
    n = grid[0] * grid[1]
    for percent in range(0, 76, 2):
        common = 3 * math.ceil(percent * n / 300)
        kept = {}
        for name in METHODS:
            for options in [""] + [o for o in LIMITS[name] if o]:
                if name == "cubistmerge" or options == "cell_size=4":
                    continue  # whole lines; 15 tokens a cell
                if percent / 100 > LIMITS[name][options]:
                    continue
                method = METHODS[name](grid, percent / 100, **chosen(options))
                if common <= method.max_removed:
                    kept[name, options] = method.num_slots
        assert set(kept.values()) == {n - common}, (percent, kept)


@every_method
def test_more_rate_leaves_fewer_slots(name) -> None:
    rates = np.linspace(0, METHODS[name].max_rate, 10)
    slots = [METHODS[name](grid=(14, 14), rate=float(rate)).num_slots for rate in rates]
    assert all(later < earlier for earlier, later in pairwise(slots))
    assert slots[0] == 196


@every_method
@pytest.mark.parametrize("excess", [1e-6, 0.05, 0.5, 10])
def test_a_rate_above_the_limit_is_refused_with_the_limit(name, excess) -> None:
    for options, limit in LIMITS[name].items():
        rate = limit + excess
        with pytest.raises(UserError, match=rf"{limit:g}") as caught:
            METHODS[name](grid=(16, 16), rate=rate, **chosen(options))
        text = str(caught.value)
        assert repr(name) in text
        others = [
            f"{other} with {o}" if o and rate > LIMITS[other][""] else other
            for other in LIMITS
            for o in LIMITS[other]
            if rate <= LIMITS[other][o]
        ]
        named = text.partition("a method that allows it: ")[2]
        assert named.split(", ") == (list(dict.fromkeys(others)) or [""])


def test_methods_that_allow_a_rate() -> None:
    assert methods_allowing(0.5) == list(METHODS)
    assert "tome" not in methods_allowing(0.51)
    assert "pitome with variant=stride" in methods_allowing(0.6)
    assert methods_allowing(0.8) == ["structsam with cell_size=4", "algm with stages=local+global"]
    assert methods_allowing(0.95) == []


NO_RATES = [-0.1, -1, math.nan, math.inf, -math.inf, "0.5", True, False, None, [0]]


@every_method
@pytest.mark.parametrize("rate", NO_RATES)
def test_a_rate_that_is_no_number_in_range_is_refused_with_the_limit(name, rate) -> None:
    with pytest.raises(UserError, match=rf"{METHODS[name].max_rate}"):
        METHODS[name](grid=(14, 14), rate=rate)


@every_method
@pytest.mark.parametrize("align", [0, -8, 8.0, True, "8", None])
def test_an_align_that_is_no_whole_number_is_refused(name, align) -> None:
    with pytest.raises(UserError, match="align"):
        METHODS[name](grid=(14, 14), rate=0.25, align=align)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9)])
def test_a_grid_without_destinations_is_refused(grid) -> None:
    with pytest.raises(UserError, match=f"no destination.*{grid[0]}x{grid[1]}"):
        METHODS["tomesd"](grid, 0.0)
    with pytest.raises(UserError, match="no destination"):
        METHODS["vidtome"]((2, 8), 0.0, frames="rows", seed=3)
