"""Merged attention and the merged block against a plain computation in float64."""

from __future__ import annotations

import pytest
import torch

from structsam.merging.attention import AttentionCore, Positions, attend
from structsam.merging.attention_forms import FORMS
from structsam.methods import METHODS
from tests.structsam.naive_attention import (
    naive_attention,
    random_attention,
    random_map,
    relative_error,
)

every_form = pytest.mark.parametrize("form", FORMS)
pytestmark = pytest.mark.usefixtures("one_torch_thread")
GRIDS = [(14, 14), (16, 16), (6, 10), (10, 6)]


@every_form
@pytest.mark.parametrize("grid", GRIDS)
def test_attention_of_merged_tokens_is_the_naive_one(form, grid) -> None:
    attn = random_attention(grid)
    tokens = random_map(2, grid[0] * grid[1], 24)
    plan = METHODS["structsam"](grid=grid, rate=0.5).plan(tokens)
    merged = plan.merge(tokens)
    actual = attend(attn, merged, Positions(grid, plan.anchor_of_slot), AttentionCore(form))
    assert actual.shape == merged.shape
    for b in range(2):
        expected = naive_attention(attn, merged[b].numpy(), plan.anchor_of_slot[b], grid)
        assert relative_error(actual[b], expected) < 1e-10


@every_form
def test_tokens_may_stand_anywhere_also_twice(form) -> None:
    grid = (6, 10)
    attn = random_attention(grid)
    tokens, anchors = random_map(2, 5, 24), torch.tensor([[59, 0, 7, 7, 31], [3, 2, 1, 0, 9]])
    actual = attend(attn, tokens, Positions(grid, anchors), AttentionCore(form))
    for b in range(2):
        expected = naive_attention(attn, tokens[b].numpy(), anchors[b], grid)
        assert relative_error(actual[b], expected) < 1e-10


@every_form
@pytest.mark.parametrize("grid", GRIDS)
def test_attention_of_all_tokens_is_stock_attention(form, grid) -> None:
    attn = random_attention(grid)
    tokens = random_map(2, grid[0] * grid[1], 24)
    expected = attn(tokens.reshape(2, *grid, 24)).flatten(1, 2)
    assert (
        relative_error(attend(attn, tokens, Positions(grid), AttentionCore(form)), expected) < 1e-10
    )
    everywhere = torch.arange(grid[0] * grid[1]).expand(2, -1)
    assert (
        relative_error(
            attend(attn, tokens, Positions(grid, everywhere), AttentionCore(form)), expected
        )
        < 1e-10
    )


@every_form
def test_the_order_of_slots_does_not_matter(form) -> None:
    grid = (6, 10)
    attn = random_attention(grid)
    tokens, anchors = random_map(1, 9, 24), torch.arange(3, 57, 6)[None]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    straight = attend(attn, tokens, Positions(grid, anchors), AttentionCore(form))[:, order]
    shuffled = attend(
        attn, tokens[:, order], Positions(grid, anchors[:, order]), AttentionCore(form)
    )
    torch.testing.assert_close(shuffled, straight)


def test_both_forms_agree_in_single_precision() -> None:
    grid = (14, 14)
    attn = random_attention(grid).float()
    tokens = random_map(2, 196, 24, dtype=torch.float32)
    plan = METHODS["structsam"](grid=grid, rate=0.55).plan(tokens)
    folded, dense = (
        attend(attn, plan.merge(tokens), Positions(grid, plan.anchor_of_slot), AttentionCore(form))
        for form in ("folded", "dense")
    )
    assert relative_error(folded, dense.double().numpy()) < 1e-5


@every_form
def test_an_exported_graph_computes_the_same(form) -> None:
    grid = (6, 10)

    class Merged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = random_attention(grid)

        def forward(self, tokens, anchors):
            return attend(self.attn, tokens, Positions(grid, anchors), AttentionCore(form))

    tokens, anchors = random_map(1, 9, 24), torch.arange(3, 57, 6)[None]
    graph = torch.export.export(Merged(), (tokens, anchors)).module()
    expected = naive_attention(random_attention(grid), tokens[0].numpy(), anchors[0], grid)
    assert relative_error(graph(tokens, anchors)[0], expected) < 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@every_form
@pytest.mark.parametrize("merged", [False, True])
def test_fused_attention_on_a_gpu_is_the_naive_one(form, merged) -> None:
    grid = (6, 10)
    attn = random_attention(grid)
    anchors = torch.arange(3, 57, 6)[None] if merged else torch.arange(60)[None]
    tokens = random_map(1, anchors.shape[1], 24)
    expected = naive_attention(attn, tokens[0].numpy(), anchors[0], grid)
    places = anchors.cuda() if merged else None
    actual = attend(attn.cuda(), tokens.cuda(), Positions(grid, places), AttentionCore(form))
    assert relative_error(actual[0].cpu(), expected) < 1e-9


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.folded])
def test_folded_channels_are_a_multiple_of_eight(form, monkeypatch) -> None:
    seen = []

    def spy(self, q, k, v, mask):
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1], mask))
        return torch.zeros_like(v)

    monkeypatch.setattr(AttentionCore, "_attend", spy)
    for grid, folded in (((14, 14), 40), ((16, 16), 40), ((6, 10), 24)):
        tokens = random_map(1, grid[0] * grid[1], 24)
        attend(random_attention(grid), tokens, Positions(grid), AttentionCore(form))
        # 8 per head + height + width, rounded up; values are as wide where a kernel asks for it
        values = folded if FORMS[form].padded else 8
        assert seen.pop() == (folded, folded, values, None)
