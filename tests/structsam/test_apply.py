"""apply_merging and remove_merging: in place, repeatable, and without a trace afterwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

import structsam
from structsam.apply import apply_merging, merged_blocks, remove_merging
from structsam.config import MergeConfig, parse_layers
from structsam.errors import UserError
from structsam.merging.attention_forms import FORMS
from structsam.merging.block import MergedBlock


@pytest.fixture(autouse=True)
def one_thread():
    """The model is tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sam(tiny_sam_factory):
    return tiny_sam_factory()


def images(batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, 256, 256, generator=generator).to(dtype)


def encode(sam, batch=1):
    with torch.no_grad():
        return sam.image_encoder(images(batch))


def snapshot(sam):
    """What must not change when a call is refused: the blocks by identity, the values."""
    return [id(block) for block in sam.image_encoder.blocks], list(sam.state_dict()), encode(sam)


def assert_unchanged(sam, before):
    ids, keys, out = snapshot(sam)
    assert ids == before[0]
    assert keys == before[1]
    assert torch.equal(out, before[2])


def rates_of(sam):
    """The rate of every block; 0 for blocks that keep all tokens."""
    return [block.method.rate if block.method else 0 for block in merged_blocks(sam)]


def test_removing_restores_everything_bit_for_bit(sam) -> None:
    blocks = list(sam.image_encoder.blocks)
    modules = {name: id(m) for name, m in sam.named_modules() if name != "image_encoder.blocks"}
    parameters = {name: id(p) for name, p in sam.named_parameters()}
    state = {key: value.clone() for key, value in sam.state_dict().items()}
    out = encode(sam, 2)
    assert apply_merging(sam, rate=0.5) is sam
    assert not torch.equal(encode(sam, 2), out)
    assert remove_merging(sam) is sam
    assert torch.equal(encode(sam, 2), out)
    assert all(a is b for a, b in zip(blocks, sam.image_encoder.blocks, strict=True))
    after = {name: id(m) for name, m in sam.named_modules() if name != "image_encoder.blocks"}
    assert after == modules
    assert list(after) == list(modules)
    assert {name: id(p) for name, p in sam.named_parameters()} == parameters
    assert list(sam.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in sam.state_dict().items())
    assert merged_blocks(sam) == []


def test_merging_keeps_keys_values_and_parameters(sam) -> None:
    keys = list(sam.state_dict())
    parameters = {name: id(p) for name, p in sam.named_parameters()}
    apply_merging(sam, rate=0.5)
    assert list(sam.state_dict()) == keys
    assert {name: id(p) for name, p in sam.named_parameters()} == parameters
    assert sum(p.numel() for p in sam.parameters()) == sum(
        p.numel() for p in remove_merging(sam).parameters()
    )


def test_removing_from_a_stock_model_does_nothing(sam) -> None:
    before = snapshot(sam)
    assert remove_merging(sam) is sam
    assert_unchanged(sam, before)


def test_applying_twice_is_applying_once(sam) -> None:
    once = encode(apply_merging(sam, rate=0.5))
    assert torch.equal(encode(apply_merging(sam, rate=0.5)), once)
    assert len(merged_blocks(sam)) == 3
    assert not any(isinstance(block.original, MergedBlock) for block in merged_blocks(sam))


def test_applying_again_replaces_the_earlier_rate(sam, tiny_sam_factory) -> None:
    stock = encode(sam)
    apply_merging(sam, rate=0.75)
    apply_merging(sam, rate=0.25, layers="window")
    fresh = apply_merging(tiny_sam_factory(), rate=0.25, layers="window")
    assert rates_of(sam) == [0.25, 0, 0.25]
    assert torch.equal(encode(sam), encode(fresh))
    assert torch.equal(encode(remove_merging(sam)), stock)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0.5, 0.5, 0.5]),
        ("global", [0, 0.5, 0]),
        ("window", [0.5, 0, 0.5]),
        ([0, 2], [0.5, 0, 0.5]),
        ((1,), [0, 0.5, 0]),
        (range(2), [0.5, 0.5, 0]),
        ([2, 2], [0, 0, 0.5]),
    ],
)
def test_layers_choose_the_blocks(sam, layers, expected) -> None:
    apply_merging(sam, rate=0.5, layers=layers)
    assert rates_of(sam) == expected
    for block in merged_blocks(sam):
        if block.method:
            assert block.method.grid == ((14, 14) if block.window_size else (16, 16))


@pytest.mark.parametrize("rates", [[0.25, 0.75, 0], (0.25, 0.75, 0)])
def test_every_block_may_have_its_own_rate(sam, rates) -> None:
    apply_merging(sam, rate=rates)
    assert rates_of(sam) == [0.25, 0.75, 0]
    slots = [block.method.num_slots for block in merged_blocks(sam) if block.method]
    assert slots == [145, 64]
    apply_merging(sam, rate=rates, layers="window")
    assert rates_of(sam) == [0.25, 0, 0]


@pytest.mark.parametrize("merged_already", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nosuch"}, "unknown method 'nosuch'.*structsam"),
        ({"rate": 0.76}, "0.76.*0.75"),
        ({"rate": -0.1}, "-0.1.*0.75"),
        ({"rate": float("nan")}, "0 to 0.75"),
        ({"rate": True}, "0 to 0.75"),
        ({"rate": "0.5"}, "0 to 0.75"),
        ({"rate": [0.5, 0.5, 0.9]}, "0.9.*0.75"),
        ({"rate": [0.5, 0.5, 0.9], "layers": [0]}, "0.9.*0.75"),
        ({"rate": [0.5, 0.5]}, "2 rates.*3 blocks"),
        ({"rate": [0.5] * 4}, "4 rates.*3 blocks"),
        ({"rate": []}, "0 rates.*3 blocks"),
        ({"layers": "some"}, "unknown layers 'some'.*all, global, window"),
        ({"layers": [3]}, "layer 3.*0 to 2"),
        ({"layers": [0, -1]}, "layer -1.*0 to 2"),
        ({"attention": "sparse"}, "unknown attention 'sparse'.*folded, folded_padded, dense"),
        ({"rates": 0.5}, "unknown argument 'rates'.*method, rate, layers, attention, options"),
        ({"reuse": 2}, "unknown argument 'reuse'"),
        ({"config": "tome"}, "'tome' is no MergeConfig.*method='structsam'"),
        ({"options": "edge"}, "options 'edge' are no names with values"),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_changes(
    sam, arguments, message, merged_already
) -> None:
    if merged_already:
        apply_merging(sam, rate=0.25)
    before = snapshot(sam)
    with pytest.raises(UserError, match=message):
        apply_merging(sam, **arguments)
    assert_unchanged(sam, before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": 1},
        {"layers": None},
        {"layers": [1.5]},  # merges nothing and says nothing
        {"layers": ["1"]},
        {"rate": None},
        {"method": ["structsam"]},
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_and_nothing_changes(sam, arguments) -> None:
    before = snapshot(sam)
    with pytest.raises(UserError):
        apply_merging(sam, **arguments)
    assert_unchanged(sam, before)


def test_a_rate_may_come_from_numpy(sam) -> None:
    assert rates_of(apply_merging(sam, rate=np.float64(0.25))) == [0.25] * 3
    assert rates_of(apply_merging(sam, rate=np.array([0.5, 0.25, 0.0]))) == [0.5, 0.25, 0]
    assert rates_of(apply_merging(sam, rate=0.5, layers=np.array([1]))) == [0, 0.5, 0]


def test_a_grid_that_the_method_cannot_cut_is_refused_and_nothing_changes(tiny_sam_factory) -> None:
    sam = tiny_sam_factory(window_size=7)
    before = snapshot(sam)
    with pytest.raises(UserError, match="7x7"):
        apply_merging(sam, rate=0.5)
    assert_unchanged(sam, before)
    apply_merging(sam, rate=0.5, layers="global")
    assert rates_of(sam) == [0, 0.5, 0]


@pytest.mark.parametrize("call", [apply_merging, remove_merging, merged_blocks])
@pytest.mark.parametrize("wrong", [torch.nn.Linear(2, 2), None, "vit_b", 3])
def test_what_is_no_sam_is_refused(call, wrong) -> None:
    with pytest.raises(UserError, match=f"{type(wrong).__name__}.*Sam"):
        call(wrong)


def test_the_encoder_alone_may_be_given(sam, tiny_sam_factory) -> None:
    encoder = tiny_sam_factory().image_encoder
    assert apply_merging(encoder, rate=0.5) is encoder
    assert torch.equal(encoder(images()), encode(apply_merging(sam, rate=0.5)))
    assert len(merged_blocks(encoder)) == 3
    assert remove_merging(encoder) is encoder
    assert torch.equal(encoder(images()), encode(remove_merging(sam)))


def test_a_config_does_what_its_arguments_do(sam, tiny_sam_factory) -> None:
    config = MergeConfig(rate=(0.25, 0.5, 0.0), layers=(0, 1), attention="dense")
    apply_merging(sam, config)
    assert [block.attention for block in merged_blocks(sam)] == ["dense"] * 3
    other = apply_merging(tiny_sam_factory(), rate=[0.25, 0.5, 0], layers=[0, 1], attention="dense")
    assert rates_of(sam) == rates_of(other) == [0.25, 0.5, 0]
    assert torch.equal(encode(sam), encode(other))
    assert rates_of(apply_merging(sam, config, layers=[1])) == [0, 0.5, 0]
    assert [block.attention for block in merged_blocks(sam)] == ["dense"] * 3


@pytest.mark.parametrize("form", FORMS)
def test_two_images_in_a_batch_are_two_single_images(sam, form) -> None:
    apply_merging(sam, rate=0.5, attention=form)
    assert [block.attention for block in merged_blocks(sam)] == [form] * 3
    pair = images(2)
    together = sam.image_encoder(pair)
    for i in range(2):
        torch.testing.assert_close(
            sam.image_encoder(pair[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_after_merging_is_finite_and_close(sam, form, dtype) -> None:
    encoder = apply_merging(sam.image_encoder, rate=0.5, attention=form)
    exact = encoder(images())
    encoder.to(dtype)
    assert {p.dtype for p in encoder.parameters()} == {dtype}
    rough = encoder(images(dtype=dtype))
    assert rough.dtype == dtype
    assert torch.isfinite(rough).all()
    similarity = torch.cosine_similarity(rough.float().flatten(), exact.flatten(), dim=0)
    assert similarity > 0.98
    remove_merging(encoder)  # the stock blocks own the same parameters
    assert encoder(images(dtype=dtype)).dtype == dtype


def test_a_deep_copy_is_independent(sam) -> None:
    apply_merging(sam, rate=0.5)
    expected = encode(sam)
    twin = copy.deepcopy(sam)
    assert torch.equal(encode(twin), expected)
    ours = {id(p) for p in sam.parameters()}
    assert not ours & {id(p) for p in twin.parameters()}
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(encode(sam), expected)
    for block in merged_blocks(twin):  # the copy's stock blocks belong to the copy
        assert block.original.attn is block.attn
    remove_merging(twin)
    assert merged_blocks(twin) == []
    assert len(merged_blocks(sam)) == 3


def test_weights_load_before_and_after_merging(sam, tiny_sam_factory) -> None:
    other = tiny_sam_factory(seed=5)
    apply_merging(sam, rate=0.5)
    sam.load_state_dict(other.state_dict())
    assert torch.equal(encode(remove_merging(sam)), encode(other))
    merged = encode(apply_merging(sam, rate=0.5))
    stock = tiny_sam_factory(seed=9)
    stock.load_state_dict(sam.state_dict())  # merged -> stock
    assert torch.equal(encode(apply_merging(stock, rate=0.5)), merged)


def test_weights_assigned_after_merging_reach_the_stock_blocks(sam, tiny_sam_factory) -> None:
    other = tiny_sam_factory(seed=5)
    apply_merging(sam, rate=0.5)
    sam.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(encode(remove_merging(sam)), encode(other))


def test_a_merged_model_can_be_saved_whole(sam, tmp_path) -> None:
    expected = encode(apply_merging(sam, rate=0.5))
    torch.save(sam, tmp_path / "merged.pt")
    loaded = torch.load(tmp_path / "merged.pt", weights_only=False)
    assert torch.equal(encode(loaded), expected)


def test_merging_neither_turns_gradients_on_nor_off(sam) -> None:
    apply_merging(sam, rate=0.5)
    assert not any(p.requires_grad for p in sam.parameters())
    assert not sam.image_encoder(images()).requires_grad
    sam.image_encoder.requires_grad_(True)
    apply_merging(sam, rate=0.25)
    assert all(p.requires_grad for p in sam.image_encoder.parameters())
    sam.image_encoder(images()).square().mean().backward()
    for name, parameter in sam.image_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_merged_blocks_stay_in_eval_mode(sam) -> None:
    apply_merging(sam, rate=0.5)
    assert not any(m.training for block in merged_blocks(sam) for m in block.modules())


def test_every_module_stays_in_eval_mode_and_the_block_list_is_the_same(sam) -> None:
    blocks = sam.image_encoder.blocks
    apply_merging(sam, rate=0.5)
    assert not any(m.training for m in sam.modules())
    remove_merging(sam)
    assert not any(m.training for m in sam.modules())
    assert sam.image_encoder.blocks is blocks


def test_a_mode_chosen_while_merged_holds_after_removing(sam) -> None:
    apply_merging(sam, rate=0.5)
    sam.train()
    remove_merging(sam)
    assert all(m.training for m in sam.modules())


def test_same_image_gives_the_same_embedding_again(sam) -> None:
    apply_merging(sam, rate=0.5)
    assert torch.equal(encode(sam), encode(sam))


def photo():
    y, x = np.mgrid[:120, :180]
    picture = np.stack([y * 2, x, (y + x) % 255], -1)
    picture[30:70, 50:120] = (250, 20, 20)
    return picture.astype(np.uint8)


def test_sam_predictor_works_on_a_merged_model(sam) -> None:
    stock = SamPredictor(sam)
    stock.set_image(photo())
    stock_embedding = stock.get_image_embedding()
    predictor = SamPredictor(apply_merging(sam, rate=0.5))
    predictor.set_image(photo())
    masks, scores, low_res = predictor.predict(box=np.array([50, 30, 120, 70]))
    assert masks.shape == (3, 120, 180)
    assert low_res.shape == (3, 64, 64)
    assert np.isfinite(scores).all()
    assert np.isfinite(low_res).all()
    assert predictor.get_image_embedding().shape == stock_embedding.shape
    assert not torch.equal(predictor.get_image_embedding(), stock_embedding)


def test_automatic_mask_generator_works_on_a_merged_model(sam) -> None:
    apply_merging(sam, rate=0.5)
    # untrained weights: accept every mask
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
    )
    found = generator.generate(photo())
    assert found
    for mask in found:
        assert mask["segmentation"].shape == (120, 180)
        assert np.isfinite(mask["predicted_iou"])


def test_sams_own_forward_works_on_a_merged_model(sam) -> None:
    apply_merging(sam, rate=0.5)
    records = [
        {
            "image": torch.rand(3, 256, 200) * 255,
            "original_size": (128, 100),
            "boxes": torch.tensor([[10.0, 20.0, 90.0, 120.0]]),
        }
    ] * 2
    outputs = sam(records, multimask_output=False)
    assert [out["masks"].shape for out in outputs] == [(1, 1, 128, 100)] * 2


def test_the_documented_names_are_the_functions() -> None:
    assert structsam.apply_merging is apply_merging
    assert structsam.remove_merging is remove_merging
    assert structsam.MergeConfig is MergeConfig
    assert structsam.UserError is UserError


def test_load_sam_gives_a_model_to_merge(monkeypatch, tiny_spec) -> None:
    from structsam.models import MODELS

    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    sam = structsam.load_sam("tiny", weights="random", seed=0)
    assert isinstance(sam, Sam)
    assert rates_of(structsam.apply_merging(sam, method="structsam", rate=0.5)) == [0.5] * 3


# MergeConfig


def test_a_config_is_frozen_comparable_and_hashable() -> None:
    config = MergeConfig(rate=(0.25, 0.5), layers=(1, 2))
    assert config == MergeConfig(rate=(0.25, 0.5), layers=(1, 2))
    assert hash(config) == hash(MergeConfig(rate=(0.25, 0.5), layers=(1, 2)))
    with pytest.raises(AttributeError):
        config.rate = 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", "all"),
        ("global", "global"),
        ("window", "window"),
        ("7", (7,)),
        ("8,7", (7, 8)),
        ("7, 8,7", (7, 8)),
    ],
)
def test_layers_are_read_as_typed(text, expected) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", "some", "7-9", "1.5", "7,,8", "ALL", "7;8"])
def test_layers_that_cannot_be_read_are_refused(text) -> None:
    with pytest.raises(UserError, match="all, global, window"):
        parse_layers(text)
