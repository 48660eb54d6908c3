"""The contract that every entry of METHODS keeps, and StructSAM against a naive second opinion."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.merge_plan import invert_ranks, rank_ascending
from structsam.methods import METHODS, find_method
from tests.structsam import naive_structsam as naive

GRIDS = [(14, 14), (16, 16), (6, 10), (64, 64)]
#: methods.md 0.4, tokens left of a 14x14 window and of the 64x64 grid.
STRUCTSAM_SLOTS = {
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


def contract_cases():
    for name, method in METHODS.items():
        for grid in GRIDS:
            for rate in sorted({0, 0.25, 0.5, method.max_rate}):
                if rate <= method.max_rate:
                    yield pytest.param(name, grid, rate, id=f"{name}-{grid[0]}x{grid[1]}-{rate}")


every_case = pytest.mark.parametrize(("name", "grid", "rate"), list(contract_cases()))
every_method = pytest.mark.parametrize("name", METHODS)


def random_tokens(batch, grid, channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], channels, generator=generator)


def whole_tokens(batch, grid, channels=3, seed=0, largest=4):
    """Integers: the energies are exact in float32 too, so even ties must come out the same."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid[0] * grid[1], channels)
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def assert_valid_plan(plan, method, batch):
    tokens, slots = method.num_tokens, method.num_slots
    assert plan.slot_of_token.shape == (batch, tokens)
    assert plan.anchor_of_slot.shape == (batch, slots)
    assert plan.slot_of_token.dtype == plan.anchor_of_slot.dtype == torch.int64
    assert plan.num_slots == slots
    for b in range(batch):
        slot_of_token, anchor_of_slot = plan.slot_of_token[b], plan.anchor_of_slot[b]
        assert slot_of_token.min() >= 0
        assert slot_of_token.max() < slots
        assert torch.bincount(slot_of_token, minlength=slots).min() >= 1
        assert anchor_of_slot.min() >= 0
        assert anchor_of_slot.max() < tokens
        assert slot_of_token[anchor_of_slot].tolist() == list(range(slots))


def mean_of_members(tokens, slot_of_token, slots):
    sums = np.zeros((slots, tokens.shape[1]))
    np.add.at(sums, slot_of_token.numpy(), tokens.double().numpy())
    return sums / np.bincount(slot_of_token.numpy(), minlength=slots)[:, None]


@every_case
def test_plan_keeps_the_contract(name, grid, rate) -> None:
    method = METHODS[name](grid=grid, rate=rate)
    tokens = random_tokens(2, grid)
    before = tokens.clone()
    plan = method.plan(tokens)
    assert_valid_plan(plan, method, 2)
    merged = plan.merge(tokens)
    assert merged.shape == (2, method.num_slots, 4)
    for b in range(2):
        expected = mean_of_members(tokens[b], plan.slot_of_token[b], method.num_slots)
        np.testing.assert_allclose(merged[b].numpy(), expected, rtol=1e-5, atol=1e-6)
        rows = merged[b][plan.slot_of_token[b]]
        assert torch.equal(plan.unmerge(merged)[b], rows)
    assert torch.equal(tokens, before), "planning and merging leave their input alone"


@every_case
def test_a_constant_map_survives_merging_exactly(name, grid, rate) -> None:
    method = METHODS[name](grid=grid, rate=rate)
    row = torch.tensor([1.5, -0.25, 3.0])  # exact in binary, so its mean is exact as well
    tokens = row.expand(1, method.num_tokens, 3).contiguous()
    plan = method.plan(tokens)
    assert_valid_plan(plan, method, 1)
    assert torch.equal(plan.unmerge(plan.merge(tokens)), tokens)


@every_case
def test_counts_are_python_integers_near_the_rate(name, grid, rate) -> None:
    method = METHODS[name](grid=grid, rate=rate)
    assert type(method.num_tokens) is int
    assert type(method.num_slots) is int
    removed = method.num_tokens - method.num_slots
    assert abs(removed - rate * method.num_tokens) < 4
    assert type(method.overhead_macs(32)) is int
    assert method.overhead_macs(64) > method.overhead_macs(32) > 0


@every_method
@pytest.mark.parametrize("grid", GRIDS[:3])
def test_rate_zero_moves_nothing(name, grid) -> None:
    method = METHODS[name](grid=grid, rate=0)
    tokens = random_tokens(2, grid)
    assert method.num_slots == method.num_tokens
    plan = method.plan(tokens)
    assert torch.equal(plan.unmerge(plan.merge(tokens)), tokens)


@every_method
def test_more_rate_leaves_fewer_slots(name) -> None:
    rates = np.linspace(0, METHODS[name].max_rate, 16)
    slots = [METHODS[name](grid=(14, 14), rate=float(rate)).num_slots for rate in rates]
    assert all(later < earlier for earlier, later in pairwise(slots))


@every_method
def test_the_same_tokens_give_the_same_plan_again(name) -> None:
    tokens = random_tokens(2, (14, 14))
    first = METHODS[name](grid=(14, 14), rate=0.5).plan(tokens)
    torch.manual_seed(99)
    second = METHODS[name](grid=(14, 14), rate=0.5).plan(tokens.clone())
    assert torch.equal(first.slot_of_token, second.slot_of_token)
    assert torch.equal(first.anchor_of_slot, second.anchor_of_slot)
    assert torch.equal(first.merge(tokens), second.merge(tokens))


@every_method
@pytest.mark.parametrize("grid", [(14, 14), (6, 10)])
def test_maps_of_one_batch_do_not_see_each_other(name, grid) -> None:
    method = METHODS[name](grid=grid, rate=0.5)
    tokens = random_tokens(3, grid)
    tokens[1] *= 100
    together = method.plan(tokens)
    merged = together.merge(tokens)
    for b in range(3):
        alone = method.plan(tokens[b : b + 1])
        assert torch.equal(alone.slot_of_token[0], together.slot_of_token[b])
        assert torch.equal(alone.anchor_of_slot[0], together.anchor_of_slot[b])
        torch.testing.assert_close(alone.merge(tokens[b : b + 1])[0], merged[b])
        torch.testing.assert_close(alone.unmerge(merged[b : b + 1])[0], together.unmerge(merged)[b])


@every_method
def test_half_precision_tokens_are_planned_and_keep_their_type(name) -> None:
    method = METHODS[name](grid=(14, 14), rate=0.5)
    tokens = random_tokens(1, (14, 14)).half()
    plan = method.plan(tokens)
    assert_valid_plan(plan, method, 1)
    assert plan.merge(tokens).dtype == torch.float16
    assert plan.unmerge(plan.merge(tokens)).dtype == torch.float16


@every_method
@pytest.mark.parametrize("excess", [1e-6, 0.05, 0.5, 10])
def test_a_rate_above_the_limit_is_refused_with_the_limit(name, excess) -> None:
    limit = METHODS[name].max_rate
    with pytest.raises(UserError, match=rf"{limit}") as caught:
        METHODS[name](grid=(14, 14), rate=limit + excess)
    assert name in str(caught.value)


NO_RATES = [-0.1, -1, math.nan, math.inf, -math.inf, "0.5", True, False, None, [0]]


@every_method
@pytest.mark.parametrize("rate", NO_RATES)
def test_a_rate_that_is_no_number_in_range_is_refused_with_the_limit(name, rate) -> None:
    with pytest.raises(UserError, match=rf"{METHODS[name].max_rate}"):
        METHODS[name](grid=(14, 14), rate=rate)


@every_method
def test_a_method_is_frozen_and_named_after_its_key(name) -> None:
    method = METHODS[name](grid=(14, 14), rate=0.5)
    assert method.name == name
    with pytest.raises(AttributeError):
        method.rate = 0.1
    assert method == METHODS[name](grid=(14, 14), rate=0.5)


def test_an_unknown_method_lists_the_valid_names() -> None:
    with pytest.raises(UserError, match=rf"'nosuch'.*{', '.join(METHODS)}"):
        find_method("nosuch")


# StructSAM itself


@pytest.mark.parametrize("grid", [(13, 14), (14, 13), (7, 7), (1, 2), (0, 0), (0, 4)])
def test_structsam_refuses_a_grid_that_cells_do_not_tile(grid) -> None:
    with pytest.raises(UserError, match=f"{grid[0]}x{grid[1]}"):
        METHODS["structsam"](grid=grid, rate=0.5)


@pytest.mark.parametrize(("rate", "slots"), STRUCTSAM_SLOTS.items())
def test_structsam_counts_are_the_published_table(rate, slots) -> None:
    for grid, expected in zip([(14, 14), (64, 64)], slots, strict=True):
        assert METHODS["structsam"](grid=grid, rate=rate).num_slots == expected
        assert naive.num_slots(grid, rate) == expected


# at 30x30 the float product 0.07 * 900 is above 63, so a bare ceil would merge a cell too many
@pytest.mark.parametrize("grid", [*GRIDS, (30, 30)])
def test_structsam_counts_agree_with_exact_arithmetic_at_every_rate(grid) -> None:
    for thousandths in range(751):
        rate = thousandths / 1000
        method = METHODS["structsam"](grid=grid, rate=rate)
        assert method.num_slots == naive.num_slots(grid, rate), rate


def special_maps(grid):
    """[N, C] maps whose energies tie in different ways."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    step = (x >= grid[1] // 2).astype(float)
    return {
        "constant": np.ones((len(y), 2)),
        "zero": np.zeros((len(y), 2)),
        "ramp-x": np.stack([x, 2 * x], 1),
        "ramp-y": np.stack([y, 3 * y], 1),
        "corner-ramp": np.stack([x * y, x + y], 1),
        "step": np.stack([step, -step], 1),
        "checkerboard": ((x + y) % 2)[:, None],
        "one-spike": (np.arange(len(y)) == len(y) // 3)[:, None],
    }


def assert_plans_are_equal(plan, b, expected):
    assert plan.num_slots == expected.num_slots
    assert plan.slot_of_token[b].tolist() == expected.slot_of_token
    assert plan.anchor_of_slot[b].tolist() == expected.anchor_of_slot


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rate", [0, 0.25, 0.5, 0.55, 0.75])
def test_structsam_on_random_tokens_is_the_naive_one(grid, rate) -> None:
    method = METHODS["structsam"](grid=grid, rate=rate)
    batch = 1 if grid == (64, 64) else 3
    tokens = whole_tokens(batch, grid, channels=6, largest=9)
    plan = method.plan(tokens)
    for b in range(batch):
        expected = naive.plan(naive.sobel_energy(tokens[b].reshape(*grid, -1)), rate)
        assert_plans_are_equal(plan, b, expected)


@pytest.mark.parametrize("grid", GRIDS[:3])
@pytest.mark.parametrize("seed", range(4))
def test_structsam_on_normal_tokens_is_the_naive_one(grid, seed) -> None:
    method = METHODS["structsam"](grid=grid, rate=0.5)
    tokens = random_tokens(1, grid, channels=16, seed=seed)
    expected = naive.plan(naive.sobel_energy(tokens[0].reshape(*grid, -1)), 0.5)
    assert_plans_are_equal(method.plan(tokens), 0, expected)


@pytest.mark.parametrize("grid", GRIDS[:3])
@pytest.mark.parametrize("kind", special_maps((2, 2)))
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
def test_structsam_on_tied_energies_is_the_naive_one(grid, kind, rate) -> None:
    tokens = special_maps(grid)[kind].astype(np.float32)
    expected = naive.plan(naive.sobel_energy(tokens.reshape(*grid, -1)), rate)
    plan = METHODS["structsam"](grid=grid, rate=rate).plan(torch.from_numpy(tokens)[None])
    assert_plans_are_equal(plan, 0, expected)


def test_structsam_on_a_constant_map_merges_the_first_cells_at_their_first_token() -> None:
    plan = METHODS["structsam"](grid=(4, 4), rate=0.25).plan(torch.ones(1, 16, 2))
    # ceil(0.25 * 16 / 3) = 2 merged cells: those of rows 0 and 1
    assert plan.slot_of_token.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 2, 3, 6, 7, 4, 5, 8, 9]]
    assert plan.anchor_of_slot.tolist() == [[0, 2, 8, 9, 12, 13, 10, 11, 14, 15]]


def test_structsam_protects_the_cell_that_holds_an_edge() -> None:
    energy = torch.tensor([[1, 1, 9, 1], [1, 1, 1, 1], [5, 5, 4, 4], [5, 5, 4, 3]]).float()
    plan = METHODS["structsam"](grid=(4, 4), rate=0.5).plan(
        torch.zeros(1, 16, 1), energy.reshape(1, 16)
    )
    # the maximum counts: cells have energies 1, 9, 5, 4 and the last three merge below the 9
    assert plan.slot_of_token.tolist() == [[0, 0, 3, 4, 0, 0, 5, 6, 2, 2, 1, 1, 2, 2, 1, 1]]
    assert plan.anchor_of_slot.tolist() == [[0, 15, 8, 2, 3, 6, 7]]


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_structsam_with_energy_of_padded_windows_is_the_naive_one(rate) -> None:
    window, size = 14, (16, 18)
    image = np.random.default_rng(1).integers(-5, 6, (*size, 3)).astype(float)
    energies = naive.partition(naive.sobel_energy(image), window)
    tokens = naive.partition(image, window)
    method = METHODS["structsam"](grid=(window, window), rate=rate)
    plan = method.plan(
        torch.tensor(np.stack(tokens), dtype=torch.float32).flatten(1, 2),
        torch.tensor(np.stack(energies), dtype=torch.float32).flatten(1),
    )
    for b, energy in enumerate(energies):
        assert_plans_are_equal(plan, b, naive.plan(energy, rate))


def test_structsam_merges_padding_before_real_tokens() -> None:
    energy = torch.full((14, 14), 0.5)
    energy[:, 8:] = 0  # the right 3 of 7 columns of cells are padding: 21 cells
    method = METHODS["structsam"](grid=(14, 14), rate=0.25)  # merges 17 cells
    plan = method.plan(torch.zeros(1, 196, 1), energy.reshape(1, 196))
    merged_columns = plan.anchor_of_slot[0, : method.num_merged_cells] % 14
    assert merged_columns.min() >= 8


@pytest.mark.parametrize("grid", GRIDS[:3])
def test_structsam_values_are_the_naive_means(grid) -> None:
    method = METHODS["structsam"](grid=grid, rate=0.5)
    tokens = whole_tokens(2, grid, channels=5, largest=9)
    plan = method.plan(tokens)
    for b in range(2):
        expected = naive.plan(naive.sobel_energy(tokens[b].reshape(*grid, -1)), 0.5)
        values = naive.merge(tokens[b], expected.slot_of_token, expected.num_slots)
        merged = plan.merge(tokens)
        np.testing.assert_allclose(merged[b].numpy(), values, rtol=0, atol=1e-6)
        back = naive.unmerge(values, expected.slot_of_token)
        np.testing.assert_allclose(plan.unmerge(merged)[b].numpy(), back, rtol=0, atol=1e-6)


def test_structsam_scores_a_whole_map_without_its_grid() -> None:
    method = METHODS["structsam"](grid=(14, 14), rate=0.5)
    image = whole_tokens(2, (16, 20)).reshape(2, 16, 20, -1)
    energy = method.token_energy(image)
    assert energy.shape == (2, 16, 20)
    assert energy.dtype == torch.float32
    np.testing.assert_allclose(energy[1].numpy(), naive.sobel_energy(image[1]), rtol=1e-6)


even = st.integers(1, 9).map(lambda half: 2 * half)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    grid=st.tuples(even, even),
    share=st.integers(0, 100),
    batch=st.integers(1, 3),
    largest=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 2**20),
)
def test_any_grid_rate_and_batch_keeps_the_contract(
    name, grid, share, batch, largest, seed
) -> None:
    method = METHODS[name](grid=grid, rate=METHODS[name].max_rate * share / 100)
    tokens = whole_tokens(batch, grid, channels=2, seed=seed, largest=largest)
    plan = method.plan(tokens)
    assert_valid_plan(plan, method, batch)
    merged = plan.merge(tokens)
    assert torch.equal(plan.merge(plan.unmerge(merged)), merged), (
        "unmerged rows merge to themselves"
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    grid=st.tuples(even, even),
    percent=st.integers(0, 75),
    largest=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 2**20),
)
def test_structsam_of_any_grid_and_rate_is_the_naive_one(grid, percent, largest, seed) -> None:
    rate = percent / 100
    tokens = whole_tokens(1, grid, channels=2, seed=seed, largest=largest)
    expected = naive.plan(naive.sobel_energy(tokens[0].reshape(*grid, -1)), rate)
    assert_plans_are_equal(METHODS["structsam"](grid=grid, rate=rate).plan(tokens), 0, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=4))
def test_ranks_are_a_stable_ascending_order(rows) -> None:
    rank = rank_ascending(torch.tensor(rows).float())
    order = invert_ranks(rank)
    for row, own_rank, own_order in zip(rows, rank.tolist(), order.tolist(), strict=True):
        expected = sorted(range(5), key=lambda i: (row[i], i))
        assert own_order == expected
        assert [own_rank[i] for i in expected] == list(range(5))


def test_ranks_are_exact_for_a_whole_global_grid_of_tokens() -> None:
    values = torch.randint(0, 50, (1, 4096), generator=torch.Generator().manual_seed(0)).float()
    rank = rank_ascending(values)
    assert torch.equal(invert_ranks(rank), torch.argsort(values, dim=-1, stable=True))
