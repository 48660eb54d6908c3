"""StructSAM against slow float64 references: cells, ablations, padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.methods import METHODS
from tests.structsam import naive_plan as groups
from tests.structsam import naive_structsam as naive
from tests.structsam.naive_bipartite import structsam_without_cells
from tests.structsam.token_maps import MAPS, edge_windows, random_tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")

GRIDS = [(14, 14), (16, 16), (6, 10), (64, 64)]
ENERGY = {"sobel": naive.sobel_energy, "central": naive.central_energy}
STRUCTSAM = METHODS["structsam"]


def whole_tokens(batch, grid, channels=3, seed=0, largest=4):
    """Integers: the energies are exact in float32 too, so even ties must come out the same."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid[0] * grid[1], channels)
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def whole_energy(batch, tokens, seed=0, largest=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, largest, (batch, tokens), generator=generator).float()


def assert_plans_are_equal(plan, b, expected):
    """Slot for slot, numbering included."""
    assert plan.num_slots == expected.num_slots
    assert plan.slot_of_token[b].tolist() == expected.slot_of_token
    assert plan.anchor_of_slot[b].tolist() == expected.anchor_of_slot


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


@pytest.mark.parametrize("grid", [(13, 14), (14, 13), (7, 7), (1, 2), (0, 0), (0, 4)])
def test_a_grid_that_cells_do_not_tile_is_refused(grid) -> None:
    with pytest.raises(UserError, match=f"{grid[0]}x{grid[1]}"):
        STRUCTSAM(grid=grid, rate=0.5)


@pytest.mark.parametrize("grid", [(14, 14), (16, 14), (6, 8)])
def test_cells_of_four_need_sides_of_four(grid) -> None:
    with pytest.raises(UserError, match=f"{grid[0]}x{grid[1]}.*4x4.*2x2"):
        STRUCTSAM(grid=grid, rate=0.5, cell_size=4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rate", [0, 0.25, 0.5, 0.55, 0.75])
def test_random_tokens_slot_for_slot(grid, rate) -> None:
    method = STRUCTSAM(grid=grid, rate=rate)
    batch = 1 if grid == (64, 64) else 3
    tokens = whole_tokens(batch, grid, channels=6, largest=9)
    plan = method.plan(tokens)
    for b in range(batch):
        expected = naive.plan(naive.sobel_energy(tokens[b].reshape(*grid, -1)), rate)
        assert_plans_are_equal(plan, b, expected)


@pytest.mark.parametrize("grid", GRIDS[:3])
@pytest.mark.parametrize("kind", special_maps((2, 2)))
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
def test_tied_energies_slot_for_slot(grid, kind, rate) -> None:
    tokens = special_maps(grid)[kind].astype(np.float32)
    expected = naive.plan(naive.sobel_energy(tokens.reshape(*grid, -1)), rate)
    plan = STRUCTSAM(grid=grid, rate=rate).plan(torch.from_numpy(tokens)[None])
    assert_plans_are_equal(plan, 0, expected)


def test_a_constant_map_merges_the_first_cells_at_their_first_token() -> None:
    plan = STRUCTSAM(grid=(4, 4), rate=0.25).plan(torch.ones(1, 16, 2))
    # ceil(0.25 * 16 / 3) = 2 merged cells: those of rows 0 and 1
    assert plan.slot_of_token.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 2, 3, 6, 7, 4, 5, 8, 9]]
    assert plan.anchor_of_slot.tolist() == [[0, 2, 8, 9, 12, 13, 10, 11, 14, 15]]
    assert plan.size_of_slot.tolist() == [[4, 4, 1, 1, 1, 1, 1, 1, 1, 1]]


def test_the_cell_that_holds_an_edge_is_protected() -> None:
    energy = torch.tensor([[1, 1, 9, 1], [1, 1, 1, 1], [5, 5, 4, 4], [5, 5, 4, 3]]).float()
    plan = STRUCTSAM(grid=(4, 4), rate=0.5).plan(torch.zeros(1, 16, 1), energy.reshape(1, 16))
    # the maximum counts: cells have energies 1, 9, 5, 4 and the last three merge below the 9
    assert plan.slot_of_token.tolist() == [[0, 0, 3, 4, 0, 0, 5, 6, 2, 2, 1, 1, 2, 2, 1, 1]]
    assert plan.anchor_of_slot.tolist() == [[0, 15, 8, 2, 3, 6, 7]]


@pytest.mark.parametrize("operator", ENERGY)
@pytest.mark.parametrize("flatness", ["max", "mean"])
@pytest.mark.parametrize("destination", ["min", "max"])
@pytest.mark.parametrize("s", [2, 4])
@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_the_choices_of_table_4(operator, flatness, destination, s, kind) -> None:
    grid = (16, 8)
    options = {"flatness": flatness, "destination": destination, "cell_size": s}
    for rate in (0.3, 0.6):
        method = STRUCTSAM(grid, rate, operator=operator, **options)
        tokens = MAPS[kind](2, 128, seed=6)
        plan = method.plan(tokens)
        for b in range(2):
            energy = ENERGY[operator](tokens[b].reshape(*grid, -1))
            merged = -(-round(rate * 128 * 1000) // (1000 * (s * s - 1)))
            assert method.num_merged_cells == merged
            expected = groups.Groups(
                naive.plan_cells(energy, grid, merged, s, flatness, destination)
            )
            groups.assert_same_plan(plan, b, expected)
            values = groups.means(expected, tokens[b])
            groups.assert_same_features(plan, b, plan.merge(tokens), values)


@pytest.mark.parametrize("flatness", ["max", "mean"])
@pytest.mark.parametrize("destination", ["min", "max"])
@pytest.mark.parametrize("s", [2, 4])
def test_the_choices_of_table_4_with_many_equal_energies(flatness, destination, s) -> None:
    energy = whole_energy(2, 256)
    method = STRUCTSAM((16, 16), 0.4, flatness=flatness, destination=destination, cell_size=s)
    plan = method.plan(torch.zeros(2, 256, 1), energy)
    for b in range(2):
        expected = naive.plan_cells(
            energy[b], (16, 16), method.num_merged_cells, s, flatness, destination
        )
        groups.assert_same_plan(plan, b, groups.Groups(expected))


@pytest.mark.parametrize("s", [2, 4])
@pytest.mark.parametrize("seed", [0, 5])
def test_random_cells_and_random_destinations_are_tables_of_the_seed(s, seed) -> None:
    energy = whole_energy(2, 256, largest=50)
    options = {"cell_size": s, "seed": seed}
    cells = STRUCTSAM((16, 16), 0.4, cells="random", **options)
    tokens = torch.zeros(2, 256, 1)
    order, orders = cells._random_cells, cells._random_tokens
    for b in range(2):
        expected = naive.plan_cells(energy[b], (16, 16), cells.num_merged_cells, s, order=order)
        groups.assert_same_plan(cells.plan(tokens, energy), b, groups.Groups(expected))
        places = STRUCTSAM((16, 16), 0.4, destination="random", **options)
        expected = naive.plan_cells(energy[b], (16, 16), places.num_merged_cells, s, orders=orders)
        groups.assert_same_plan(places.plan(tokens, energy), b, groups.Groups(expected))


def test_random_tables_are_permutations_that_the_seed_changes() -> None:
    methods = [STRUCTSAM((16, 16), 0.4, cells="random", seed=seed) for seed in range(20)]
    orders = np.array([method._random_cells for method in methods])
    assert (np.sort(orders, 1) == np.arange(64)).all()
    assert len(np.unique(orders, axis=0)) == 20
    places = np.array([method._random_tokens for method in methods])  # [20, 64, 4]
    assert (np.sort(places, -1) == np.arange(4)).all()
    first = places.argmin(-1).ravel()
    share = np.bincount(first, minlength=4) / len(first)
    assert abs(share - 0.25).max() < 0.04, "every place of a cell is as likely"
    merged = (orders < 20).mean(0)
    assert merged.max() < 0.75, "no cell is preferred"


@pytest.mark.parametrize("operator", ENERGY)
@pytest.mark.parametrize("kind", ["random", "sign", "exact"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_without_cells(operator, kind, rate) -> None:
    method = STRUCTSAM((14, 14), rate, variant="no_cell", operator=operator)
    tokens = MAPS[kind](2, 196, seed=3)
    plan = method.plan(tokens)
    for b in range(2):
        energy = ENERGY[operator](tokens[b].reshape(14, 14, -1)).ravel()
        expected = structsam_without_cells(tokens[b].numpy(), energy, method.num_removed)
        groups.assert_same_plan(plan, b, expected)
        values = groups.means(expected, tokens[b])
        groups.assert_same_features(plan, b, plan.merge(tokens), values)
    windows = edge_windows(method, kind)
    plan = method.plan(windows.tokens, windows.energy, windows.padding)
    for b, padding in enumerate(windows.padding.numpy()):
        energy, own = windows.energy[b].numpy(), windows.tokens[b].numpy()
        expected = structsam_without_cells(own, energy, method.num_removed, padding)
        groups.assert_same_plan(plan, b, expected)


def test_without_cells_the_cell_size_changes_nothing() -> None:
    tokens = random_tokens(1, 256)
    plans = [STRUCTSAM((16, 16), 0.7, variant="no_cell", cell_size=s).plan(tokens) for s in (2, 4)]
    assert torch.equal(plans[0].slot_of_token, plans[1].slot_of_token)
    with pytest.raises(UserError, match=r"0\.75"):
        STRUCTSAM((16, 16), 0.9, variant="no_cell", cell_size=4)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("options", [{}, {"cells": "random"}, {"flatness": "mean"}])
def test_padded_windows(rate, options) -> None:
    method = STRUCTSAM((14, 14), rate, **options)
    windows = edge_windows(method, "random")
    plan = method.plan(windows.tokens, windows.energy, windows.padding)
    for b, padding in enumerate(windows.padding.numpy()):
        order = None
        if options.get("cells"):
            of_padding = [padding[cell[0]] for cell in naive.cells_of((14, 14))]
            order = np.where(of_padding, -1, method._random_cells)
        expected = naive.plan_cells(
            windows.energy[b],
            (14, 14),
            method.num_merged_cells,
            flatness=options.get("flatness", "max"),
            order=order,
        )
        groups.assert_same_plan(plan, b, groups.Groups(expected))
        cells_of_padding = int(padding.sum()) // 4
        merged = plan.anchor_of_slot[b, : min(cells_of_padding, method.num_merged_cells)]
        assert padding[merged.numpy()].all(), "padding merges first"


def test_energies_of_the_whole_map() -> None:
    method = STRUCTSAM(grid=(14, 14), rate=0.5)
    image = whole_tokens(2, (16, 20)).reshape(2, 16, 20, -1)
    for operator, energy_of in ENERGY.items():
        energy = STRUCTSAM((14, 14), 0.5, operator=operator).token_energy(image)
        assert energy.shape == (2, 16, 20)
        assert energy.dtype == torch.float32
        np.testing.assert_allclose(energy[1].numpy(), energy_of(image[1]), rtol=1e-6)
    assert method.metric == "head_mean"
    assert STRUCTSAM((14, 14), 0.5, channels="all").metric == "all"


def test_energies_that_are_given_are_used() -> None:
    tokens, energy = random_tokens(1, 196), whole_energy(1, 196, largest=1000)
    for variant, operator in itertools.product(("cell", "no_cell"), ENERGY):
        method = STRUCTSAM((14, 14), 0.5, variant=variant, operator=operator)
        plans = [method.plan(tokens, e) for e in (energy, energy + 0.0, None)]
        assert torch.equal(plans[0].slot_of_token, plans[1].slot_of_token)
        assert not torch.equal(plans[0].slot_of_token, plans[2].slot_of_token)


even = st.integers(1, 9).map(lambda half: 2 * half)


@settings(max_examples=60)
@given(
    grid=st.tuples(even, even),
    percent=st.integers(0, 75),
    largest=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 2**20),
)
def test_any_grid_and_rate_slot_for_slot(grid, percent, largest, seed) -> None:
    rate = percent / 100
    tokens = whole_tokens(1, grid, channels=2, seed=seed, largest=largest)
    expected = naive.plan(naive.sobel_energy(tokens[0].reshape(*grid, -1)), rate)
    assert_plans_are_equal(STRUCTSAM(grid=grid, rate=rate).plan(tokens), 0, expected)
