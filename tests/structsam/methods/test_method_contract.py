"""The contract that every entry of METHODS keeps, with every value of its options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.methods import METHODS, MergeMethod, find_method
from structsam.methods.cost import MergeCost
from structsam.plans.matching import plan_of_match
from tests.structsam import method_contract as contract
from tests.structsam.token_maps import DEGENERATE, WINDOW, random_tokens, sign_tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")

every_case = pytest.mark.parametrize(
    ("name", "options", "grid", "rate"), contract.cases(), ids=contract.label
)
every_window_case = pytest.mark.parametrize(
    ("name", "options", "rate"), contract.window_cases(), ids=contract.label
)
every_method = pytest.mark.parametrize("name", METHODS)


@every_case
def test_plan_keeps_the_contract(name, options, grid, rate) -> None:
    contract.check_case(name, options, grid, rate)


@every_window_case
def test_padded_windows_keep_the_contract_alone_and_in_a_batch(name, options, rate) -> None:
    contract.check_padded_case(name, options, rate)
    contract.check_padded_case(name, options, rate, kind="sign")


@pytest.mark.parametrize(
    ("name", "options", "rate"), contract.window_cases((0.5, 1.0), False), ids=contract.label
)
def test_half_precision_tokens_are_planned_and_keep_their_type(name, options, rate) -> None:
    contract.check_half(name, options, rate)


@every_method
@pytest.mark.parametrize("kind", DEGENERATE)
def test_maps_without_information_give_valid_plans(name, kind) -> None:
    tokens = DEGENERATE[kind](1, WINDOW**2)
    for found, options, rate in contract.window_cases((0.5, 1.0), False):
        if found == name:
            contract.check_degenerate(name, options, rate, tokens)


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_passed_on(name, value) -> None:
    """It has to come out, where it is refused with advice, and not to end in a read elsewhere."""
    for found, options, rate in contract.window_cases((0.5,), False):
        if found != name:
            continue
        contract.check_not_finite(name, options, rate, value)


@every_method
@pytest.mark.parametrize("kind", ["zero", "constant"])
def test_a_global_map_without_information_gives_a_valid_plan(name, kind) -> None:
    method = METHODS[name]((64, 64), 0.5)
    tokens = DEGENERATE[kind](1, 4096)
    contract.check_plan(method, method.plan(tokens), tokens)


@every_method
def test_padding_without_energies_is_still_kept_apart(name) -> None:
    """`energy` may be absent; then the method scores the padded window itself."""
    for options in contract.combinations(name):
        for rate in (0.25, 0.5):
            try:
                method = METHODS[name]((WINDOW, WINDOW), rate, **options)
            except UserError:
                continue
            windows = contract.edge_windows(method)
            plan = method.plan(windows.tokens, None, windows.padding)
            contract.check_plan(method, plan, windows.tokens, windows.padding)


even = st.integers(1, 8).map(lambda half: 2 * half)


@st.composite
def methods(draw):
    """Any method with any options on a small even grid, at a rate that the grid allows."""
    name = draw(st.sampled_from(sorted(METHODS)))
    options = draw(st.sampled_from(contract.combinations(name)))
    for key, option in contract.method_options(METHODS[name]).items():
        if option.kind is int and not option.choices:
            options = {**options, key: draw(st.integers(0, 5))}
    grid = draw(st.tuples(even, even))
    try:
        cap = contract.cap_of(name, grid, **options)
    except UserError:
        grid = (8, 8)
        cap = contract.cap_of(name, grid, **options)
    rate = math.floor(1000 * cap * draw(st.integers(0, 100)) / 100) / 1000
    try:
        return METHODS[name](grid, rate, draw(st.sampled_from([1, 1, 4, 8])), **options)
    except UserError as refusal:  # where whole cells or `align` jump over the cap
        assert "cannot remove" in str(refusal)
        return METHODS[name](grid, 0.0, **options)


@settings(max_examples=400, deadline=None)
@given(
    method=methods(),
    batch=st.integers(1, 3),
    maker=st.sampled_from([random_tokens, sign_tokens]),
    seed=st.integers(0, 2**20),
)
def test_any_method_option_grid_and_rate_keeps_the_contract(method, batch, maker, seed) -> None:
    tokens = maker(batch, method.num_tokens, seed=seed)
    plan = method.plan(tokens)
    contract.check_plan(method, plan, tokens)
    contract.check_features(method, plan, tokens)
    contract.check_constant_survives(plan, tokens)


@every_method
def test_a_method_is_frozen_and_says_what_it_is(name) -> None:
    method = METHODS[name](grid=(14, 14), rate=0.5)
    assert method.name == name
    assert method.source
    assert method.metric in ("head_mean", "all")
    assert (METHODS[name].__doc__ or "").strip()
    with pytest.raises(AttributeError):
        method.rate = 0.1
    assert hash(method) == hash(METHODS[name](grid=(14, 14), rate=0.5))


@every_method
def test_costs_are_whole_numbers_that_grow_with_the_channels(name) -> None:
    for options in contract.combinations(name):
        cap = contract.cap_of(name, (16, 16), **options)
        method = METHODS[name]((16, 16), min(0.5, cap), **options)
        costs = [method.cost(c, c // 4) for c in (64, 128)]
        assert all(type(part) is int for cost in costs for part in vars(cost).values())
        assert costs[1].total == 2 * costs[0].total


def test_an_unknown_method_lists_the_valid_names() -> None:
    for name in ("nosuch", None, ["tome"]):
        with pytest.raises(UserError, match=rf"unknown method .*{', '.join(METHODS)}"):
            find_method(name)


# A method of one's own


@dataclass(frozen=True)
class Halves(MergeMethod):
    """Every odd column joins the even one beside it, as many as the rate says, in map order."""

    first: Literal["top", "bottom"] = "top"

    name: ClassVar[str] = "halves"
    source: ClassVar[str] = "this test"
    max_rate: ClassVar[float] = 0.5
    join_wrongly: ClassVar[bool] = False

    def plan(self, tokens, energy=None, padding=None, box=None):
        even, count = torch.arange(0, self.num_tokens, 2), self.num_removed
        pairs = even if self.first == "top" else even.flip(0)
        match = torch.arange(count)
        sources = pairs[:count] + (3 if self.join_wrongly else 1)
        kept = pairs[count:] + 1
        rows = [t.expand(len(tokens), -1) for t in (kept, pairs, sources, match)]
        return plan_of_match(self.grid, *rows)

    def cost(self, channels, metric_channels):
        return MergeCost(pooling=self.num_removed * channels)


def test_a_method_of_one_class_and_one_line_is_checked_like_all_others(monkeypatch) -> None:
    before = len(contract.cases())
    monkeypatch.setitem(METHODS, "halves", Halves)
    names = [name for name, *_ in contract.cases()]
    # three rates by default and with the other value of its option, and the large grid
    assert names.count("halves") == 3 + 3 + 3 + 1
    assert len(names) == before + names.count("halves")
    assert contract.check_method("halves") == 3 + 3


def test_the_contract_catches_a_false_promise_about_padding(monkeypatch) -> None:
    """Too few slots, and too many."""
    for base, promise in ((METHODS["structsam"], 0), (METHODS["structsam"], 40)):
        body = {"padding_slots": lambda self, real, promise=promise: promise, "name": "liar"}
        monkeypatch.setitem(METHODS, "liar", type("Liar", (base,), body))
        with pytest.raises(AssertionError, match="a slot of padding"):
            contract.check_method("liar")


def test_the_contract_catches_a_wrong_method(monkeypatch) -> None:
    wrong = type("Wrong", (Halves,), {"join_wrongly": True})
    monkeypatch.setitem(METHODS, "halves", wrong)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        contract.check_method("halves")
