"""Slots that are padding are known beforehand, and leaving them out changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.apply import apply_merging, set_prompt_box
from structsam.config import PLACEMENTS, MergeConfig
from structsam.merging.attention import Positions
from structsam.merging.block_plan import BlockMerging, MapGroup, _read_from_image
from structsam.merging.geometry import UnpaddedSlots, WindowMaps
from structsam.methods import StructSAM
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
    assert StructSAM((14, 14), 0.5).padding_slots_of_maps((28, 28)) is None


def test_rows_and_slots():
    """Map 0 has no padding, map 1 two slots of it."""
    real = UnpaddedSlots([0, 2], [3], torch.device("cpu"))
    slots = torch.arange(6.0).reshape(2, 3, 1)
    assert real.take(slots).flatten().tolist() == [0, 1, 2, 5]
    rows = torch.tensor([[10.0], [11], [12], [13], [-1]])
    assert real.spread(rows).squeeze(-1).tolist() == [[10, 11, 12], [-1, -1, 13]]
    assert real.row_of(torch.arange(6).reshape(2, 3)).tolist() == [[0, 1, 2], [4, 4, 3]]


def test_rows_of_parts():
    """Slots are a first part of two and a second of one; map 1 has three slots of padding."""
    real = UnpaddedSlots([0, 3, 1], [2, 1], torch.device("cpu"))
    slots = torch.arange(9).reshape(3, 3)
    rows = real.take(slots.unsqueeze(-1)).flatten()
    assert rows.tolist() == [0, 1, 7, 2, 8]  # first parts of all maps, then second parts
    first, second = real.take_parts(slots[:, :2], slots[:, 2:])
    assert torch.cat([first, second]).tolist() == rows.tolist()
    assert real.row_of(slots).tolist() == [[0, 1, 3], [5, 5, 5], [5, 2, 4]]
    spread = real.spread(torch.cat([rows, torch.tensor([-1])]).unsqueeze(-1)).squeeze(-1)
    assert spread.tolist() == [[0, 1, 2], [-1, -1, -1], [-1, 7, 8]]


@settings(deadline=None, max_examples=30)
@given(
    image=st.sampled_from([(16, 16), (24, 16), (20, 16), (12, 28)]),
    cell=st.sampled_from([2, 4]),
    rate=st.floats(0.05, 0.7),
    images=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_slots_straight_from_the_image_are_those_of_its_windows(image, cell, rate, images, seed):
    """With and without padding, windows of 8x8."""
    method = StructSAM((8, 8), rate, cell_size=cell)
    maps = WindowMaps(images, *image, 8, torch.device("cpu"))
    x = torch.randn(images, *image, 5, generator=torch.Generator().manual_seed(seed))
    tokens = maps.cut(x)
    plan = method.plan(tokens, padding=maps.padding)
    cut = MapGroup(plan, Positions(plan.grid), maps.padding, None)
    direct = _read_from_image(cut, method, maps)
    assert direct.of_image is not None
    slots = plan.merge(tokens)
    expected = direct.unpadded.take(slots) if direct.unpadded else slots
    torch.testing.assert_close(BlockMerging(maps, [direct], None)._merge(x)[0], expected)


@pytest.mark.parametrize(("side", "variant"), [(12, "no_cell"), (13, "cell")])
def test_windows_are_cut_where_padding_may_be_read(side, variant):
    method = StructSAM((8, 8), 0.5, variant=variant)
    maps = WindowMaps(1, side, side, 8, torch.device("cpu"))
    padding = maps.padding
    plan = method.plan(torch.randn(4, 64, 3), padding=padding)
    group = MapGroup(plan, Positions(plan.grid), padding, None)
    assert _read_from_image(group, method, maps).of_image is None


CONFIGS = {
    **{placement: {"placement": placement} for placement in PLACEMENTS},
    "sizes": {"proportional": True, "align": 8},
    "box": {"prompt_aware": "rank"},  # its box reaches over padding
}


@pytest.mark.parametrize("more", CONFIGS.values(), ids=list(CONFIGS))
def test_the_same_encoder_with_and_without_padding_slots(
    tiny_sam_factory, tiny_spec, monkeypatch, more
):
    """Two images: rows of the second lie behind those of the first."""
    side = tiny_spec.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    config = MergeConfig(rate=0.4, **more)
    taken = []
    take = UnpaddedSlots.take

    def embedding():
        sam = apply_merging(tiny_sam_factory(), config)
        if config.prompt_aware:
            set_prompt_box(sam, torch.tensor([[side * 0.6, side * 0.6, side * 1.5, side * 1.5]]))
        return sam.image_encoder(images)

    with torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(UnpaddedSlots, "take", lambda self, x: taken.append(1) or take(self, x))
            short = embedding()
        monkeypatch.setattr(StructSAM, "padding_slots", lambda self, real: None)
        whole = embedding()
    assert taken  # the model has windows with padding
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_torch_compile_sees_one_graph(tiny_sam_factory, tiny_spec, placement):
    """Without a break: indices of rows are constants, not results of a search."""
    side = tiny_spec.image_size
    encoder = apply_merging(tiny_sam_factory(), MergeConfig(placement=placement)).image_encoder
    torch._dynamo.reset()
    with torch.no_grad():
        told = torch._dynamo.explain(encoder)(torch.zeros(1, 3, side, side))
    assert told.graph_break_count == 0, [reason.reason for reason in told.break_reasons]
