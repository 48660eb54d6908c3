"""Gradient energy: zero where nothing changes, right at the border, finite in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from structsam.plans.gradient_energy import OPERATORS, central_energy, sobel_energy
from tests.structsam import naive_structsam as naive

NAIVE = {"sobel": naive.sobel_energy, "central": naive.central_energy}
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def random_map(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ramp(height, width, axis, slope=1.0):
    place = torch.arange(height)[:, None] if axis == "y" else torch.arange(width)[None, :]
    return (slope * place.float()).expand(height, width)[None, :, :, None]


@every_operator
@pytest.mark.parametrize("value", [0.0, 1.0, -7.3, 1e4])
def test_a_constant_map_has_no_energy_at_all_borders_included(operator, value) -> None:
    constant = torch.full((2, 6, 8, 5), value) * torch.tensor([1.0, 0.1, -3.0, 0.7, 1e-3])
    assert torch.count_nonzero(OPERATORS[operator](constant)) == 0


@every_operator
@pytest.mark.parametrize("size", [(14, 14), (6, 10), (2, 2), (1, 7), (7, 1), (1, 1)])
def test_energy_is_that_of_a_plain_loop(operator, size) -> None:
    tokens = random_map(2, *size, 7)
    energy = OPERATORS[operator](tokens)
    assert energy.shape == (2, *size)
    assert energy.dtype == torch.float32
    for b in range(2):
        expected = NAIVE[operator](tokens[b].numpy())
        np.testing.assert_allclose(energy[b].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_operator_has_a_plain_loop_to_compare_with() -> None:
    assert set(OPERATORS) == set(NAIVE)


@every_operator
def test_a_ramp_down_weighs_as_much_as_one_to_the_right(operator) -> None:
    down, right = (OPERATORS[operator](ramp(8, 8, axis))[0] for axis in ("y", "x"))
    assert torch.equal(down, right.T)
    inside = 8.0 if operator == "sobel" else 1.0
    assert torch.equal(right[:, 1:-1], torch.full((8, 6), inside))
    assert torch.equal(right[:, 0], torch.full((8,), inside / 2))  # the replicated edge halves it
    assert torch.equal(right[:, -1], torch.full((8,), inside / 2))


@every_operator
def test_diagonals_of_both_signs_weigh_the_same(operator) -> None:
    falling = OPERATORS[operator](ramp(8, 8, "y") + ramp(8, 8, "x"))[0, 1:-1, 1:-1]
    rising = OPERATORS[operator](ramp(8, 8, "y") - ramp(8, 8, "x"))[0, 1:-1, 1:-1]
    assert torch.equal(falling, rising)
    inside = (8.0 if operator == "sobel" else 1.0) * 2**0.5
    torch.testing.assert_close(falling, torch.full((6, 6), inside))


@every_operator
def test_energy_does_not_depend_on_the_direction_of_a_change(operator) -> None:
    tokens = random_map(1, 8, 10, 4)
    energy = OPERATORS[operator](tokens)
    torch.testing.assert_close(OPERATORS[operator](-tokens), energy)
    for axis in (1, 2):
        torch.testing.assert_close(OPERATORS[operator](tokens.flip(axis)).flip(axis), energy)


@every_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_half_precision_maps_do_not_overflow(operator, dtype) -> None:
    signs = torch.where(random_map(1, 6, 6, 768) > 0, 1.0, -1.0)
    tokens = (300 * signs).to(dtype)
    energy = OPERATORS[operator](tokens)
    assert energy.dtype == torch.float32
    assert torch.isfinite(energy).all()
    assert torch.equal(energy, OPERATORS[operator](tokens.float()))
    np.testing.assert_allclose(
        energy[0].numpy(), NAIVE[operator](tokens[0].double().numpy()), rtol=1e-5
    )


def test_sobel_smooths_across_the_difference_and_central_does_not() -> None:
    tokens = torch.zeros(1, 5, 5, 1)
    tokens[0, 2, 2] = 1
    corner = 2**0.5
    ring = torch.tensor([[corner, 2.0, corner], [2.0, 0.0, 2.0], [corner, 2.0, corner]])
    torch.testing.assert_close(sobel_energy(tokens)[0, 1:4, 1:4], ring)
    cross = torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.0]])
    assert torch.equal(central_energy(tokens)[0, 1:4, 1:4], cross)
