"""Merged attention and the merged block against a plain computation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from structsam import merged_attention
from structsam.apply import apply_merging, merged_blocks
from structsam.merged_attention import ATTENTIONS, attend
from structsam.methods import METHODS
from tests.structsam import naive_structsam as naive

every_form = pytest.mark.parametrize("form", ATTENTIONS)
GRIDS = [(14, 14), (16, 16), (6, 10), (10, 6)]


@pytest.fixture(autouse=True)
def one_thread():
    """The model is tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_attention(grid, dim=24, heads=3, seed=0):
    """Stock attention in float64; everything random, relative positions large enough to matter."""
    attn = Attention(dim, num_heads=heads, use_rel_pos=True, input_size=grid).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in attn.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.3
        parameter.data.normal_(0, scale, generator=generator)
    for parameter in (attn.rel_pos_h, attn.rel_pos_w):
        parameter.data.normal_(0, 0.4, generator=generator)
    return attn.requires_grad_(False)


def numpy_of(tensor):
    return tensor.detach().double().numpy()


def linear(layer, rows):
    return rows @ numpy_of(layer.weight).T + numpy_of(layer.bias)


def naive_attention(attn, tokens, anchors, grid):
    """methods.md 0.3, query by query: tokens [M, C] that stand at `anchors` [M]."""
    heads, (height, width) = attn.num_heads, grid
    table_h, table_w = numpy_of(attn.rel_pos_h), numpy_of(attn.rel_pos_w)
    slots, channels = tokens.shape
    dim = channels // heads
    query, key, value = np.split(linear(attn.qkv, tokens), 3, axis=1)
    out = np.zeros((slots, channels))
    places = [divmod(int(anchor), width) for anchor in anchors]
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        for a in range(slots):
            q, (y_a, x_a) = query[a, own], places[a]
            logits = key[:, own] @ q / math.sqrt(dim)
            from_h, from_w = table_h @ q, table_w @ q  # unscaled q
            for b, (y_b, x_b) in enumerate(places):
                logits[b] += from_h[y_a - y_b + height - 1] + from_w[x_a - x_b + width - 1]
            share = np.exp(logits - logits.max())
            out[a, own] = share / share.sum() @ value[:, own]
    return linear(attn.proj, out)


def layer_norm(norm, rows):
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * numpy_of(norm.weight) + numpy_of(norm.bias)


def naive_block(block, feature_map, rate):
    """A SAM block with merging on one [H, W, C] map, in the order of design section 4."""
    height, width, channels = feature_map.shape
    normed = layer_norm(block.norm1, feature_map)
    energy = naive.sobel_energy(normed)  # on the whole map, before any window is cut
    side = block.window_size or height
    pieces = []
    for window, scores in zip(
        naive.partition(normed, side), naive.partition(energy, side), strict=True
    ):
        tokens = window.reshape(-1, channels)
        plan = naive.plan(scores, rate)
        merged = naive.merge(tokens, plan.slot_of_token, plan.num_slots)
        seen = naive_attention(block.attn, merged, plan.anchor_of_slot, (side, side))
        pieces.append(naive.unmerge(seen, plan.slot_of_token).reshape(side, side, channels))
    x = feature_map + naive.unpartition(pieces, side, (height, width))
    hidden = linear(block.mlp.lin1, layer_norm(block.norm2, x))
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + linear(block.mlp.lin2, hidden)


def random_map(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()


@every_form
@pytest.mark.parametrize("grid", GRIDS)
def test_attention_of_merged_tokens_is_the_naive_one(form, grid) -> None:
    attn = random_attention(grid)
    tokens = random_map(2, grid[0] * grid[1], 24)
    plan = METHODS["structsam"](grid=grid, rate=0.5).plan(tokens)
    merged = plan.merge(tokens)
    actual = attend(attn, merged, plan.anchor_of_slot, grid, form)
    assert actual.shape == merged.shape
    for b in range(2):
        expected = naive_attention(attn, merged[b].numpy(), plan.anchor_of_slot[b], grid)
        assert relative_error(actual[b], expected) < 1e-10


@every_form
def test_tokens_may_stand_anywhere_also_twice(form) -> None:
    grid = (6, 10)
    attn = random_attention(grid)
    tokens, anchors = random_map(2, 5, 24), torch.tensor([[59, 0, 7, 7, 31], [3, 2, 1, 0, 9]])
    actual = attend(attn, tokens, anchors, grid, form)
    for b in range(2):
        expected = naive_attention(attn, tokens[b].numpy(), anchors[b], grid)
        assert relative_error(actual[b], expected) < 1e-10


@every_form
@pytest.mark.parametrize("grid", GRIDS)
def test_attention_of_all_tokens_is_stock_attention(form, grid) -> None:
    attn = random_attention(grid)
    tokens = random_map(2, grid[0] * grid[1], 24)
    expected = attn(tokens.reshape(2, *grid, 24)).flatten(1, 2)
    assert relative_error(attend(attn, tokens, None, grid, form), expected) < 1e-10
    everywhere = torch.arange(grid[0] * grid[1]).expand(2, -1)
    assert relative_error(attend(attn, tokens, everywhere, grid, form), expected) < 1e-10


@every_form
def test_the_order_of_slots_does_not_matter(form) -> None:
    grid = (6, 10)
    attn = random_attention(grid)
    tokens, anchors = random_map(1, 9, 24), torch.arange(3, 57, 6)[None]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    straight = attend(attn, tokens, anchors, grid, form)[:, order]
    shuffled = attend(attn, tokens[:, order], anchors[:, order], grid, form)
    torch.testing.assert_close(shuffled, straight)


def test_both_forms_agree_in_single_precision() -> None:
    grid = (14, 14)
    attn = random_attention(grid).float()
    tokens = random_map(2, 196, 24, dtype=torch.float32)
    plan = METHODS["structsam"](grid=grid, rate=0.55).plan(tokens)
    folded, dense = (
        attend(attn, plan.merge(tokens), plan.anchor_of_slot, grid, form)
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
            return attend(self.attn, tokens, anchors, grid, form)

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
    actual = attend(attn.cuda(), tokens.cuda(), places, grid, form)
    assert relative_error(actual[0].cpu(), expected) < 1e-9


def test_folded_channels_are_a_multiple_of_eight(monkeypatch) -> None:
    seen = []

    def spy(q, k, v):
        seen.append((q.shape[-1], k.shape[-1]))
        return torch.zeros_like(v)

    monkeypatch.setattr(merged_attention, "_softmax_attention", spy)
    for grid, folded in (((14, 14), 40), ((16, 16), 40), ((6, 10), 24)):
        attend(random_attention(grid), random_map(1, grid[0] * grid[1], 24), None, grid, "folded")
        assert seen.pop() == (folded, folded)  # 8 per head + height + width, rounded up


@every_form
@pytest.mark.parametrize("seed", [0, 1])
def test_rate_zero_is_stock_sam(form, seed, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(seed)
    image = random_map(2, 3, 256, 256, dtype=torch.float32)
    expected = sam.image_encoder(image).double().numpy()
    apply_merging(sam, rate=0, attention=form)
    assert len(merged_blocks(sam)) == 3
    assert relative_error(sam.image_encoder(image), expected) < 1e-5


@every_form
@pytest.mark.parametrize("index", [0, 1], ids=["padded-window", "global"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_a_merged_block_is_the_naive_one(form, index, rate, tiny_sam_factory) -> None:
    sam = tiny_sam_factory(3).double()
    apply_merging(sam, rate=rate, attention=form)
    block = sam.image_encoder.blocks[index]
    feature_map = random_map(1, 16, 16, 32, seed=index)
    actual = block(feature_map)[0].numpy()
    expected = naive_block(block, feature_map[0].numpy(), rate)
    # energies are float32 in both precisions, hence equal plans; the rest is float64
    assert relative_error(actual, expected) < 1e-9


def test_a_merged_block_in_single_precision_is_close_to_the_naive_one(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(3), rate=0.5)
    block = sam.image_encoder.blocks[0]
    feature_map = random_map(1, 16, 16, 32, dtype=torch.float32)
    expected = naive_block(block, feature_map[0].double().numpy(), 0.5)
    assert relative_error(block(feature_map)[0], expected) < 1e-5


def test_padded_windows_merge_by_the_energy_of_the_unpadded_map(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    block = sam.image_encoder.blocks[0]
    feature_map = random_map(2, 16, 16, 32, dtype=torch.float32)
    plans = []
    block.on_plan = plans.append
    block(feature_map)
    (plan,) = plans
    assert plan.slot_of_token.shape == (2 * 4, 196)
    for image in range(2):
        normed = layer_norm(block.norm1, feature_map[image].double().numpy())
        for window, energy in enumerate(naive.partition(naive.sobel_energy(normed), 14)):
            expected = naive.plan(energy, 0.5)
            row = image * 4 + window
            assert plan.slot_of_token[row].tolist() == expected.slot_of_token
            assert plan.anchor_of_slot[row].tolist() == expected.anchor_of_slot


def test_only_merging_blocks_report_a_plan(tiny_sam_factory) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5, layers="global")
    plans = []
    for block in merged_blocks(sam):
        block.on_plan = plans.append
    sam.image_encoder(random_map(1, 3, 256, 256, dtype=torch.float32))
    assert [plan.grid for plan in plans] == [(16, 16)]


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_merging_changes_the_result(rate, tiny_sam_factory) -> None:
    image = random_map(1, 3, 256, 256, dtype=torch.float32)
    sam = tiny_sam_factory()
    stock = sam.image_encoder(image).double().numpy()
    apply_merging(sam, rate=rate)
    assert relative_error(sam.image_encoder(image), stock) > 1e-3
