"""CubistMerge against a slow float64 reference: both passes, features, positions, counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.methods import METHODS
from structsam.plans.line_merge import line_pass
from tests.structsam import naive_cubistmerge as naive
from tests.structsam import naive_plan as groups
from tests.structsam.token_maps import MAPS, edge_windows

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FEATURES = ("max_magnitude", "mean")
RATES = [0.0, 0.25, 0.5, 0.55, 0.75]


def assert_is(method, tokens, padding=None) -> None:
    rho_h, rho_w = method.removed_per_line
    plan = method.plan(tokens, None, padding)
    merged = plan.merge(tokens)
    short = (method.grid[0] - rho_h, method.grid[1] - rho_w)
    assert plan.slot_grid == (short if method.positions == "structured" else None)
    for b in range(len(tokens)):
        pad = None if padding is None else padding[b].numpy()
        smaller = naive.plan(tokens[b].numpy(), method.grid, rho_h, rho_w, method.feature, pad)
        groups.assert_same_plan(plan, b, naive.groups(smaller))
        places = [place for row in smaller for place in row]
        # slots are the smaller grid, row by row
        assert plan.anchor_of_slot[b].tolist() == [place.anchor for place in places]
        groups.assert_same_features(plan, b, merged, {p.anchor: p.feature for p in places})


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["random", "sign", "smooth"])
@pytest.mark.parametrize("grid", [(14, 14), (6, 10), (7, 9)])
def test_cubistmerge(feature, rate, kind, grid) -> None:
    if grid == (7, 9) and rate == 0.75:
        with pytest.raises(UserError, match="at most 43 of 63 tokens can go"):
            METHODS["cubistmerge"](grid, rate, feature=feature)
        rate = 43 / 63
    method = METHODS["cubistmerge"](grid, rate, feature=feature)
    assert_is(method, MAPS[kind](2, math.prod(grid), seed=1))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["random", "sign", "smooth"])
def test_cubistmerge_in_padded_windows(feature, rate, kind) -> None:
    method = METHODS["cubistmerge"]((14, 14), rate, feature=feature)
    windows = edge_windows(method, kind)
    assert_is(method, windows.tokens, windows.padding)


@pytest.mark.parametrize("positions", ["structured", "original"])
def test_positions_change_nothing_but_the_slots_grid(positions) -> None:
    method = METHODS["cubistmerge"]((14, 14), 0.5, positions=positions)
    tokens = MAPS["random"](2, 196)
    assert_is(method, tokens)
    other = METHODS["cubistmerge"]((14, 14), 0.5).plan(tokens)
    plan = method.plan(tokens)
    assert torch.equal(plan.slot_of_token, other.slot_of_token)
    assert torch.equal(plan.anchor_of_slot, other.anchor_of_slot)


def test_cubistmerge_of_a_global_map() -> None:
    assert_is(METHODS["cubistmerge"]((64, 64), 0.55), MAPS["sign"](1, 4096))


def test_features_of_other_tokens_than_those_compared() -> None:
    """Comparison may use other features than those that are merged (heads' mean, all channels)."""
    scored, tokens = MAPS["random"](1, 196), MAPS["random"](1, 196, channels=5, seed=9)
    for feature in FEATURES:
        method = METHODS["cubistmerge"]((14, 14), 0.5, feature=feature)
        plan = method.plan(scored)
        values = plan.merge(tokens)
        found = groups.groups_of_plan(plan, 0)
        if feature == "mean":
            groups.assert_same_features(plan, 0, values, groups.means(found, tokens[0]))
            continue
        for slot, anchor in enumerate(plan.anchor_of_slot[0].tolist()):
            members = tokens[0, list(found.members[anchor])].numpy()
            largest = members[abs(members).argmax(0), np.arange(5)]
            np.testing.assert_array_equal(values[0, slot].numpy(), largest)


def test_both_neighbours_of_a_destination_count() -> None:
    """methods.md 8.3 (i): the published code loses one of them."""
    line = torch.tensor([[[1.0, 0, 1], [1, 7, 0], [1, 1, 1], [1, 0, 5], [0, 9, 0.0]]])
    found = line_pass(line, 2)
    assert found.kept.tolist() == [[0, 2, 4]]
    merged = found.largest_magnitude(line)[0].tolist()
    left, right = merged[0], merged[1]
    # tokens 1 and 3 are both most like token 2
    assert found.goes_left.tolist() == [[False, True]]
    assert found.goes_right.tolist() == [[True, False]]
    assert left == [1, 0, 1]
    assert right == [1, 7, 5]
    assert found.total(line)[0, 1].tolist() == [3, 8, 6]


def test_equal_neighbours_join_to_the_left_and_lower_lines_first() -> None:
    line = torch.ones(1, 7, 2)
    found = line_pass(line, 2)
    assert found.place_of_token.tolist() == [[0, 0, 1, 1, 2, 3, 4]]
    assert found.kept.tolist() == [[0, 2, 4, 5, 6]]


@pytest.mark.parametrize("grid", [(14, 14), (64, 64), (7, 9), (16, 10)])
@pytest.mark.parametrize("align", [1, 8, 16])
def test_lines_are_the_nearest_to_the_rate(grid, align) -> None:
    for thousandths in range(0, 751, 5):
        rate = thousandths / 1000
        try:
            expected = naive.removed_per_line(grid, rate, align)
        except ValueError:
            with pytest.raises(UserError, match="cannot remove"):
                METHODS["cubistmerge"](grid, rate, align)
            continue
        assert METHODS["cubistmerge"](grid, rate, align).removed_per_line == expected


def test_published_line_counts() -> None:
    """methods.md 8.4 at a rate of 0.55."""
    assert METHODS["cubistmerge"]((64, 64), 0.55).removed_per_line == (21, 21)
    window = METHODS["cubistmerge"]((14, 14), 0.55)
    assert window.num_slots == 90
    assert sorted(window.removed_per_line) == [4, 5]


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=11),
    st.integers(0, 100),
)
def test_any_line_of_signs(values, share) -> None:
    removed = share * (len(values) // 2) // 100
    line = torch.tensor(values).float().reshape(1, -1, 1)
    found = line_pass(line, removed)
    places = [naive.Place(i, (i,), np.array([float(v)]), False) for i, v in enumerate(values)]
    expected = naive.shorten(places, removed, "max_magnitude", line[0].double().numpy())
    assert found.kept[0].tolist() == [place.anchor for place in expected]
    of_token = {token: i for i, place in enumerate(expected) for token in place.members}
    assert found.place_of_token[0].tolist() == [of_token[i] for i in range(len(values))]
    largest = found.largest_magnitude(line)[0, :, 0].tolist()
    assert largest == [place.feature[0] for place in expected]
