"""Ranks by counting: a stable order without a sort."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.plans.ranking import invert_ranks, rank_ascending, rank_descending

rows = st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=4)
tiers = st.lists(st.booleans(), min_size=5, max_size=5)


@settings(max_examples=60)
@given(rows)
def test_ranks_are_a_stable_ascending_order(rows) -> None:
    rank = rank_ascending(torch.tensor(rows).float())
    assert rank.dtype == torch.int64
    order = invert_ranks(rank)
    for row, own_rank, own_order in zip(rows, rank.tolist(), order.tolist(), strict=True):
        expected = sorted(range(5), key=lambda i: (row[i], i))
        assert own_order == expected
        assert [own_rank[i] for i in expected] == list(range(5))


@settings(max_examples=60)
@given(rows)
def test_descending_ranks_have_the_lower_index_first_as_well(rows) -> None:
    order = invert_ranks(rank_descending(torch.tensor(rows).float()))
    for row, own in zip(rows, order.tolist(), strict=True):
        assert own == sorted(range(5), key=lambda i: (-row[i], i))


@settings(max_examples=60)
@given(rows, tiers)
def test_tiers_go_before_values(rows, late) -> None:
    values = torch.tensor(rows).float()
    rank = rank_ascending(values, torch.tensor(late).expand(values.shape))
    for row, own in zip(rows, invert_ranks(rank).tolist(), strict=True):
        assert own == sorted(range(5), key=lambda i: (late[i], row[i], i))


def test_a_part_of_an_order() -> None:
    rank = torch.tensor([[2, 0, 3, 1]])
    assert invert_ranks(rank).tolist() == [[1, 3, 0, 2]]
    assert invert_ranks(rank, 1, 3).tolist() == [[3, 0]]
    assert invert_ranks(rank, 2).tolist() == [[0, 2]]


def test_infinite_values_and_long_axes() -> None:
    values = torch.tensor([float("inf"), 0.0, float("-inf"), -0.0, float("inf")])
    assert rank_ascending(values).tolist() == [3, 1, 0, 2, 4]
    assert rank_ascending(torch.zeros(2, 3, 0)).shape == (2, 3, 0)


def test_values_that_are_no_numbers_have_places_of_their_own() -> None:
    """A place that two have, or none, is read beyond the end by what follows."""
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[nan, 0.0, nan, inf, -1.0], [nan] * 5])
    assert rank_ascending(values).tolist() == [[2, 1, 3, 4, 0], [0, 1, 2, 3, 4]]
    for kind in (torch.float16, torch.float32):
        found = rank_descending(values.to(kind))
        assert torch.equal(found.sort(-1).values, torch.arange(5).expand(2, 5))


def test_ranks_are_exact_for_a_whole_global_grid_of_tokens() -> None:
    values = torch.randint(0, 50, (1, 4096), generator=torch.Generator().manual_seed(0)).float()
    rank = rank_ascending(values)
    assert torch.equal(invert_ranks(rank), torch.argsort(values, dim=-1, stable=True))
    down = torch.argsort(values, dim=-1, stable=True, descending=True)
    assert torch.equal(invert_ranks(rank_descending(values)), down)
