"""Slots that are padding are known beforehand, and leaving them out changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.apply import apply_config
from structsam.config import PLACEMENTS, MergeConfig
from structsam.methods import StructSAM
from structsam.real_slots import RealSlots, padding_slots_of_maps
from tests.structsam.method_contract import check_padding_slots


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 14),
    columns=st.integers(1, 14),
    rate=st.floats(0.01, 0.75),
    flat=st.booleans(),
    options=st.sampled_from([{}, {"cells": "random"}, {"flatness": "mean"}]),
    seed=st.integers(0, 99),
)
def test_padding_comes_first_whatever_the_energies(rows, columns, rate, flat, options, seed):
    """Also where real tokens have no energy either, and where cells mix both."""
    method = StructSAM((14, 14), rate, **options)
    padding = torch.ones(14, 14, dtype=torch.bool)
    padding[:rows, :columns] = False
    random = torch.rand(14, 14, generator=torch.Generator().manual_seed(seed))
    energy = (torch.zeros(14, 14) if flat else random).masked_fill(padding, 0.0)
    plan = method.plan(torch.zeros(1, 196, 3), energy.reshape(1, -1), padding.reshape(1, -1))
    check_padding_slots(method, plan.slot_of_token[0], padding.flatten())


def test_other_variants_promise_nothing():
    assert StructSAM((14, 14), 0.5, variant="no_cell").padding_slots((8, 14)) is None
    assert padding_slots_of_maps(StructSAM((14, 14), 0.5), (28, 28), (14, 14)) is None


def test_rows_and_slots():
    """Map 0 has no padding, map 1 two slots of it."""
    real = RealSlots([0, 2], 3)
    slots = torch.arange(6.0).reshape(2, 3, 1)
    assert real.take(slots).flatten().tolist() == [0, 1, 2, 5]
    rows = torch.tensor([[10.0], [11], [12], [13], [-1]])
    assert real.spread(rows).squeeze(-1).tolist() == [[10, 11, 12], [-1, -1, 13]]
    assert real.row_of(torch.arange(6).reshape(2, 3)).tolist() == [[0, 1, 2], [4, 4, 3]]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_same_encoder_with_and_without_padding_slots(
    tiny_sam_factory, tiny_spec, monkeypatch, placement
):
    """Two images: rows of the second lie behind those of the first."""
    side = tiny_spec.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    config = MergeConfig(rate=0.4, placement=placement)
    taken = []
    take = RealSlots.take
    with torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(RealSlots, "take", lambda self, x: taken.append(1) or take(self, x))
            short = apply_config(tiny_sam_factory(), config).image_encoder(images)
        monkeypatch.setattr(StructSAM, "padding_slots", lambda self, real: None)
        whole = apply_config(tiny_sam_factory(), config).image_encoder(images)
    assert taken  # the model has windows with padding
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-5)
