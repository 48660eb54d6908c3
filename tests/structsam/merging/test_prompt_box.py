"""Prompt boxes: what lies outside merges first, whatever its energy (methods.md 7.5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from structsam.methods import METHODS
from tests.structsam import method_contract as contract
from tests.structsam import naive_plan as groups
from tests.structsam import naive_structsam as naive
from tests.structsam.naive_bipartite import structsam_without_cells
from tests.structsam.token_maps import random_tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TAKERS = [name for name, method in METHODS.items() if method.takes_box]
coordinate = st.floats(-3, 20, allow_nan=False, width=32)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
)


def test_structsam_takes_a_box() -> None:
    assert "structsam" in TAKERS


@settings(max_examples=150)
@given(
    options=st.sampled_from(contract.combinations("structsam")),
    grid=st.sampled_from([(16, 16), (8, 12), (14, 14)]),
    rate=st.integers(0, 75).map(lambda percent: percent / 100),
    box=boxes,
    seed=st.integers(0, 1000),
)
@example(options={}, grid=(16, 16), rate=0.5, box=[5.0, 3.0, 11.0, 9.0], seed=0)  # on centres
@example(options={}, grid=(16, 16), rate=0.5, box=[4.0, 4.0, 12.0, 12.0], seed=0)  # on borders
def test_no_cell_inside_merges_while_one_outside_stays(options, grid, rate, box, seed) -> None:
    if grid == (14, 14):
        options = {**options, "cell_size": 2}
    method = METHODS["structsam"](grid, rate, **options)
    s = 1 if method.variant == "no_cell" else method.cell_size
    tokens = random_tokens(2, method.num_tokens, seed=seed)
    both = torch.tensor([box, [-1.0, -1.0, -0.5, -0.5]])  # the second lies outside the map
    plan = method.plan(tokens, box=both)
    contract.check_plan(method, plan, tokens)
    contract.check_features(method, plan, tokens)
    without = method.plan(tokens)
    assert plan.num_slots == without.num_slots
    assert torch.equal(plan.slot_of_token[1], without.slot_of_token[1]), "an empty box does nothing"
    cells = naive.cells_of(grid, s)
    inside = [naive.centre_is_inside(cell, grid, box) for cell in cells]
    sizes = plan.size_of_slot[0][plan.slot_of_token[0]].tolist()
    if method.variant == "no_cell":
        # a destination that nobody chose takes part as well, and is not seen to
        merging = 4 * method.num_removed // 3
        late = [token for token, flag in enumerate(inside) if flag]
        merged_inside = sum(sizes[token] > 1 for token in late)
        assert merged_inside <= max(0, merging - (len(cells) - len(late)))
        return
    merged = [sizes[cell[0]] == s * s for cell in cells]
    assert sum(merged) == method.num_merged_cells
    if any(flag and done for flag, done in zip(inside, merged, strict=True)):
        assert all(done for flag, done in zip(inside, merged, strict=True) if not flag)


@pytest.mark.parametrize("options", [{}, {"flatness": "mean"}, {"cell_size": 4}])
@pytest.mark.parametrize("box", [[3, 2, 9.5, 12], [0, 0, 16, 16], [5, 3, 11, 9], [7, 7, 7, 7]])
@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_boxes_against_the_slow_reference(options, box, rate) -> None:
    energy = torch.randint(0, 9, (2, 256), generator=torch.Generator().manual_seed(0)).float()
    method = METHODS["structsam"]((16, 16), rate, **options)
    boxes = torch.tensor([box, [8.0, 0.0, 16.0, 16.0]])
    plan = method.plan(torch.zeros(2, 256, 1), energy, box=boxes)
    for b in range(2):
        expected = naive.plan_cells(
            energy[b],
            (16, 16),
            method.num_merged_cells,
            method.cell_size,
            method.flatness,
            box=boxes[b].tolist(),
        )
        groups.assert_same_plan(plan, b, groups.Groups(expected))


def test_a_box_without_cells_against_the_slow_reference() -> None:
    method = METHODS["structsam"]((14, 14), 0.5, variant="no_cell")
    tokens = random_tokens(1, 196)
    energy = naive.sobel_energy(tokens[0].reshape(14, 14, -1)).ravel()
    box = [3.0, 2.5, 10.0, 9.5]
    inside = [naive.centre_is_inside([t], (14, 14), box) for t in range(196)]
    plan = method.plan(tokens, box=torch.tensor([box]))
    expected = structsam_without_cells(
        tokens[0].numpy(), energy, method.num_removed, inside=np.array(inside)
    )
    groups.assert_same_plan(plan, 0, expected)


def test_maps_of_a_batch_have_boxes_of_their_own() -> None:
    method = METHODS["structsam"]((16, 16), 0.5)
    tokens = random_tokens(1, 256).repeat(3, 1, 1)
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16], [0, 0, 16, 16]])
    plan = method.plan(tokens, box=boxes)
    for b in range(3):
        alone = method.plan(tokens[:1], box=boxes[b : b + 1])
        assert torch.equal(alone.slot_of_token[0], plan.slot_of_token[b])
    assert not torch.equal(plan.slot_of_token[0], plan.slot_of_token[1])
    without = method.plan(tokens[:1])
    assert torch.equal(plan.slot_of_token[2], without.slot_of_token[0]), "all inside: as without"


def test_padding_outside_the_box_goes_before_everything_inside() -> None:
    method = METHODS["structsam"]((14, 14), 0.75)
    windows = contract.edge_windows(method)
    boxes = torch.tensor([[0.0, 0, 8, 8]]).repeat(4, 1)
    plan = method.plan(windows.tokens, windows.energy, windows.padding, boxes)
    contract.check_plan(method, plan, windows.tokens, windows.padding)
