"""What is recorded of an encoder is what its blocks got and did."""

from __future__ import annotations

import pytest
import torch

from structsam.apply import apply_merging, merged_blocks, remove_merging
from structsam.recording import block_inputs, record_plans


@pytest.fixture
def image(tiny_spec) -> torch.Tensor:
    side = tiny_spec.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_embedding_follows_from_what_is_recorded(tiny_sam_factory, image) -> None:
    """A block that merges by the recorded plan gives the same."""
    sam = apply_merging(tiny_sam_factory(), method="structsam", rate=0.5)
    with torch.inference_mode(), record_plans(sam) as planned:
        expected = sam.image_encoder(image)
        inputs, embedding = block_inputs(sam, image)
        assert torch.equal(embedding, expected)
        assert list(planned) == [0, 1, 2]
        for x, following, (index, merging) in zip(
            inputs, inputs[1:], planned.items(), strict=False
        ):
            block = merged_blocks(sam)[index]
            normed = block.norm1(x)
            assert torch.equal(merging.energy, block.method.token_energy(block.metric_map(normed)))
            x = x + merging.around(normed, block._attention_on_slots)
            assert torch.equal(following, x + block.mlp(block.norm2(x)))


def test_the_inputs_of_a_stock_model(tiny_sam_factory, image) -> None:
    encoder = tiny_sam_factory().image_encoder
    with torch.inference_mode():
        inputs, embedding = block_inputs(encoder, image)
        x = encoder.patch_embed(image) + encoder.pos_embed
        for block, given in zip(encoder.blocks, inputs, strict=True):
            assert torch.equal(given, x)
            x = block(x)
        assert torch.equal(embedding, encoder.neck(x.permute(0, 3, 1, 2)))
    assert not any(block._forward_pre_hooks for block in encoder.blocks)


def test_the_energy_of_pitome_is_the_one_it_ranks_by(tiny_sam_factory, image) -> None:
    """By the map: in every window the tokens of highest energy merge, and no others."""
    sam = apply_merging(tiny_sam_factory(), method="pitome", rate=0.25)
    with torch.inference_mode(), record_plans(sam) as planned:
        sam.image_encoder(image)
    merging = planned[1]  # of one map without padding
    energy = merging.energy.flatten()
    merged = (merging.plan.size_of_slot.gather(1, merging.plan.slot_of_token) > 1).flatten()
    removed = 256 - merging.plan.num_slots
    assert energy.shape == (256,)
    assert merged.sum() > removed
    limit = energy.sort(descending=True).values[2 * removed - 1]
    assert energy[merged].min() >= limit


def test_methods_that_score_nothing_have_no_energy(tiny_sam_factory, image) -> None:
    sam = apply_merging(tiny_sam_factory(), method="tome", rate=0.5)
    with torch.inference_mode(), record_plans(sam) as planned:
        sam.image_encoder(image)
    assert [merging.energy for merging in planned.values()] == [None] * 3


def test_the_encoder_is_left_after_the_last_block_to_look_at(tiny_sam_factory, image) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    ended: list[int] = []
    for index, block in enumerate(merged_blocks(sam)):
        block.register_forward_hook(lambda *_, index=index: ended.append(index))
    with torch.inference_mode(), record_plans(sam, last=1) as planned:
        sam.image_encoder(image)
    assert list(planned) == [0, 1]
    assert ended == [0]


def test_nothing_is_recorded_after_the_context_nor_of_a_stock_model(
    tiny_sam_factory, image
) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    with pytest.raises(ZeroDivisionError), record_plans(sam) as planned:
        raise ZeroDivisionError
    sam.image_encoder(image)
    assert planned == {}
    assert all(block.on_plan is None for block in merged_blocks(sam))
    with record_plans(remove_merging(sam)) as planned:
        sam.image_encoder(image)
    assert planned == {}


def test_recordings_may_be_nested(tiny_sam_factory, image) -> None:
    sam = apply_merging(tiny_sam_factory(), rate=0.5)
    with torch.inference_mode(), record_plans(sam) as outer:
        with record_plans(sam, last=0) as inner:
            sam.image_encoder(image)
        sam.image_encoder(image)
    assert (list(inner), list(outer)) == ([0], [0, 1, 2])
