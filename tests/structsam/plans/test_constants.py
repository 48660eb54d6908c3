"""Constants are computed once per shape and device, and never while a graph is traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from structsam.apply import apply_merging
from structsam.plans.constants import constant


class Operations(TorchDispatchMode):
    """Names of the operations that run, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def made():
    """Arguments of every call of the function that makes this test's own constant."""
    return []


@pytest.fixture
def make(made):
    def make(n: int, device: torch.device) -> Tensor:
        made.append(n)
        return torch.arange(n, device=device)

    return make


def test_a_constant_is_made_once_per_key(make, made) -> None:
    first = constant(make, 3, like=torch.zeros(1))
    assert constant(make, 3, like=torch.ones(5)) is first
    assert constant(make, 4, like=torch.zeros(1)).tolist() == [0, 1, 2, 3]
    assert made == [3, 4]


def test_another_device_has_its_own(make) -> None:
    assert constant(make, 3, like=torch.zeros(1, device="meta")).is_meta
    assert constant(make, 3, like=torch.zeros(1)).tolist() == [0, 1, 2]


def test_what_was_made_in_inference_mode_serves_autograd(make) -> None:
    with torch.inference_mode():
        constant(make, 2, like=torch.zeros(1))
    x = torch.randn(4, requires_grad=True)
    x.index_select(0, constant(make, 2, like=x)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("kept_before", [False, True])
def test_a_traced_graph_neither_leaves_nor_takes_a_constant(make, made, kept_before) -> None:
    if kept_before:
        constant(make, 2, like=torch.zeros(1))
    with FakeTensorMode() as mode:
        inside = constant(make, 2, like=mode.from_tensor(torch.zeros(1)))
        assert type(inside) is not Tensor
    assert type(constant(make, 2, like=torch.zeros(1))) is Tensor
    assert made == [2, 2]


@pytest.mark.parametrize("method", ["structsam", "tome", "pitome"])
def test_an_encoder_computes_no_geometry_again(method, tiny_sam_factory, tiny_spec) -> None:
    """A window block made 471 operations a call before, 50 of them `arange` for padding alone."""
    side = tiny_spec.image_size
    encoder = apply_merging(tiny_sam_factory(), method=method, rate=0.4).image_encoder
    block = next(block for block in encoder.blocks if block.window_size)
    x = torch.randn(1, *encoder.pos_embed.shape[1:])
    with torch.inference_mode():
        encoder(torch.zeros(1, 3, side, side))
        with Operations() as second:
            block(x)
    assert second.names.count("arange") <= 12  # rows of maps within one table
    assert not {"eye", "ones", "lift_fresh"} & set(second.names)
    assert len(second.names) < 270
