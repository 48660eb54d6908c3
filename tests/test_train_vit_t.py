"""scripts/train_vit_t.py: repeatable, resumable, and equal to the stock modules it trains."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from structsam.errors import UserError
from structsam.models import ModelSpec, model_spec

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def script(name: str = "train_vit_t") -> Any:
    return importlib.import_module(name)


@pytest.fixture
def photographs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two sets of noisy images with one rectangle each; one of them with a void map."""
    root = tmp_path / "train"
    for name in ("a", "b"):
        for folder in ("images", "masks", "void"):
            (root / name / folder).mkdir(parents=True)
        for stem in range(3):
            labels = np.zeros((60, 80), np.uint8)
            labels[10:40, 20 + 5 * stem : 60] = 1
            pixels = rng.integers(0, 80, (60, 80, 3)) + 150 * labels[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / "images" / f"{stem}.jpg")
            Image.fromarray(labels).save(root / name / "masks" / f"{stem}.png")
        void = np.zeros((60, 80), np.uint8)
        void[:, :5] = 1
        Image.fromarray(void).save(root / name / "void" / "0.png")
    return root


@pytest.fixture
def trainer_at(tiny_spec: ModelSpec) -> Callable[..., Any]:
    pytest.importorskip("matplotlib", reason="the training script draws its curve with matplotlib")
    trainer = script("vit_t_trainer")

    def make(out: Path, steps: int = 6, seed: int = 3, teacher: Any = None) -> Any:
        settings = trainer.Settings(
            steps=steps, seed=seed, prompts=3, workers=0, refine=0.5, log_every=2, threads=1,
            validate_every=4, validation_images=2,
            stages=(trainer.Stage(0.0, (8,), 2), trainer.Stage(0.5, (16, 8), 1, whole=True)),
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        return trainer.Trainer(tiny_spec, settings, out, "cpu", teacher)

    return make


def parameters(trainer: Any) -> list[torch.Tensor]:
    return [p.detach() for p in trainer.parameters] + list(trainer.average)


@pytest.mark.parametrize("with_mask", [False, True])
def test_the_fast_forward_equals_the_stock_modules(
    tiny_sam_factory: Callable[..., Any], with_mask: bool
) -> None:
    forward, sam = script("vit_t_forward"), tiny_sam_factory()
    torch.manual_seed(0)
    with torch.no_grad():
        images = torch.randn(1, 3, 256, 256)
        stock = sam.image_encoder(images)
        mine = forward.encode(sam.image_encoder, images)
        torch.testing.assert_close(mine, stock.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)

        boxes = torch.tensor([[10.0, 20, 100, 200], [50, 60, 250, 120]])
        masks = torch.randn(2, 1, 64, 64) if with_mask else None
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=masks)
        wanted, ious = sam.mask_decoder.predict_masks(
            stock, sam.prompt_encoder.get_dense_pe(), sparse, dense
        )
        coords = ((boxes + 0.5) / 256).view(2, 2, 2)
        own = forward.embed_prompts(sam.prompt_encoder, coords, torch.tensor([[2, 3], [2, 3]]))
        torch.testing.assert_close(own, sparse)
        got, own_ious = forward.decode(
            sam, mine, own[None], None if masks is None else masks[:, 0][None]
        )
        torch.testing.assert_close(got[0], wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(own_ious[0], ious, rtol=1e-3, atol=1e-3)

        points = torch.tensor([[[30.0, 40]]])
        sparse, _ = sam.prompt_encoder(points=(points, torch.ones(1, 1)), boxes=None, masks=None)
        coords = torch.cat([(points + 0.5) / 256, torch.zeros(1, 1, 2)], dim=1)
        own = forward.embed_prompts(sam.prompt_encoder, coords, torch.tensor([[1, -1]]))
        torch.testing.assert_close(own, sparse)


def test_a_resumed_run_equals_an_uninterrupted_one(
    photographs: Path, tmp_path: Path, trainer_at: Callable[..., Any]
) -> None:
    train = script()
    whole = trainer_at(tmp_path / "whole")
    train.train(whole, photographs)
    again = trainer_at(tmp_path / "again")
    train.train(again, photographs)
    for one, other in zip(parameters(whole), parameters(again), strict=True):
        assert torch.equal(one, other)

    first = trainer_at(tmp_path / "cut")
    for batch in train.batches(first, photographs, tmp_path / "cut" / "cache"):
        first.train_step(batch)
        if first.step == 4:
            break
    first.save()
    second = trainer_at(tmp_path / "cut")
    second.resume()
    assert second.step == 4
    train.train(second, photographs)
    for one, other in zip(parameters(whole), parameters(second), strict=True):
        assert torch.equal(one, other)

    assert (tmp_path / "whole" / "curve.png").stat().st_size > 1000
    rows = (tmp_path / "whole" / "validation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "4", "6"]
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_few_steps_lower_the_loss(
    photographs: Path, tmp_path: Path, trainer_at: Callable[..., Any]
) -> None:
    trainer = trainer_at(tmp_path, steps=1000)
    batch = next(script().batches(trainer, photographs, tmp_path / "cache"))
    trainer.settings = replace(trainer.settings, refine=0.0)
    losses = [float(trainer.train_step(batch)[0]) for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def teacher(tiny_sam_factory: Callable[..., Any]) -> Any:
    """Embeddings of single patches, small as a neck's may be, and a decoder of its own."""
    from segment_anything.modeling.common import LayerNorm2d

    torch.manual_seed(5)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 16, 16), LayerNorm2d(256))
    encoder.requires_grad_(False)[-1].weight.fill_(0.1)
    encoder.neck = encoder[-1:]
    return script("vit_t_loss").Teacher(encoder, tiny_sam_factory(), "cpu")


def test_a_teacher_lends_its_decoder_and_pulls_the_embeddings(
    photographs: Path, tmp_path: Path, trainer_at: Callable[..., Any], teacher: Any
) -> None:
    trainer = trainer_at(tmp_path, steps=1000, teacher=teacher)
    before = {k: v.clone() for k, v in trainer.sam.image_encoder.state_dict().items()}
    trainer.borrow(teacher)
    own, lent = trainer.sam.state_dict(), teacher.sam.state_dict()
    for name, value in own.items():
        encoder = name.startswith("image_encoder.")
        kept = before[name.removeprefix("image_encoder.")] if encoder else lent[name]
        if name == "image_encoder.neck.3.weight":
            kept = torch.full_like(kept, 0.1)
        assert torch.equal(value, kept), name
    for mean, parameter in zip(trainer.average, trainer.parameters, strict=True):
        assert torch.equal(mean, parameter)

    loss, forward = script("vit_t_loss"), script("vit_t_forward")
    batch = next(script().batches(trainer, photographs, tmp_path / "cache"))

    def distance() -> float:
        images = loss._inputs(trainer.sam, batch, "cpu")
        with torch.no_grad():
            wanted = teacher.embeddings(images, 0)
            inside = loss._inside(batch.sizes, wanted, "cpu")
            found = forward.encode(trainer.sam.image_encoder, images)
            return float(loss._embedding_loss(found, wanted, inside))

    first = distance()
    for _ in range(15):
        trainer.train_step(batch)
    assert distance() < 0.8 * first
    assert all(p.grad is None for p in teacher.sam.parameters())


def test_the_embedding_loss_is_relative_and_ignores_padding() -> None:
    loss = script("vit_t_loss")
    torch.manual_seed(0)
    wanted = torch.randn(2, 16, 256)
    inside = loss._inside(torch.tensor([[64, 64], [33, 64]]), wanted, "cpu")
    assert inside.sum().item() == 16 + 12  # 33 rows reach into the third of four
    moved = wanted + 0.5 * torch.randn_like(wanted)
    one = loss._embedding_loss(moved, wanted, inside)
    assert one == pytest.approx(0.25, rel=0.1)
    scaled = loss._embedding_loss(0.01 * moved, 0.01 * wanted, inside)
    assert scaled == pytest.approx(float(one), rel=1e-4)
    moved[~inside] = 1e3
    assert loss._embedding_loss(moved, wanted, inside) == pytest.approx(float(one))
    assert loss._embedding_loss(wanted, wanted, inside) == 0


def test_a_teacher_sees_whole_images_at_its_own_size(teacher: Any) -> None:
    seen = []
    teacher.encoder.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0].shape))
    small = teacher.embeddings(torch.randn(1, 3, 128, 128), 256)
    assert seen == [(1, 3, 256, 256)] and small.shape == (1, 64, 256)
    teacher.embeddings(torch.randn(1, 3, 128, 128), 0)
    assert seen[1] == (1, 3, 128, 128)


def test_soft_masks_cost_least_where_they_are_met() -> None:
    errors = script("vit_t_loss")._errors
    soft = torch.rand(1, 2, 1, 16, 16, generator=torch.Generator().manual_seed(1)).round()
    weight = torch.ones(1, 1, 1, 16, 16)
    right = errors((soft - 0.5) * 40, soft, weight)
    wrong = errors((0.5 - soft) * 40, soft, weight)
    assert (right < 0.01).all() and (wrong > 1).all()
    weight[..., 8:] = 0  # what is not scored costs nothing
    half = torch.where(weight > 0, (soft - 0.5) * 40, (0.5 - soft) * 40)
    assert (errors(half, soft, weight) < 0.01).all()


def test_batches_depend_on_seed_and_step_alone(photographs: Path, tmp_path: Path) -> None:
    data_module = script("vit_t_data")
    source = script("vit_t_photographs").Photographs(photographs, tmp_path / "cache")
    order = data_module.Order(0, 1, 8, 2, 3, 0.5, 0.125)
    one, same, other = (
        data_module.make_batch(source, order._replace(step=step)) for step in (1, 1, 2)
    )
    assert np.array_equal(one.images, same.images) and np.array_equal(one.coords, same.coords)
    assert not np.array_equal(one.images, other.images)
    objects = one.segments[:, None] == one.names[..., None, None]
    assert objects.any((-2, -1)).all()  # no prompt without an object
    boxes = one.labels[..., 0] == 2
    assert (one.coords >= 0).all() and (one.coords <= 1).all()
    assert (one.coords[boxes][:, 1] > one.coords[boxes][:, 0]).all()


def test_an_absent_empty_or_damaged_folder_is_named(photographs: Path, tmp_path: Path) -> None:
    data_module, train = script("vit_t_photographs"), script()
    with pytest.raises(UserError, match="No training data at .*nowhere.*--data FOLDER"):
        data_module.Photographs(tmp_path / "nowhere", tmp_path / "c1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no NAME/images"):
        data_module.Photographs(tmp_path / "empty", tmp_path / "c2")
    with pytest.raises(UserError, match=re.escape("--data FOLDER and a budget")):
        train.run(["--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match=r"No checkpoint .*train first"):
        train.run(["--out", str(tmp_path / "run"), "--export", str(tmp_path / "x.safetensors")])
    image = photographs / "a" / "images" / "1.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"Cannot read .*1\.jpg"):
        data_module.Photographs(photographs, tmp_path / "c3")
    image.write_bytes(whole)
    mask = photographs / "b" / "masks" / "2.png"
    labels = mask.read_bytes()
    Image.open(mask).convert("RGB").save(mask)
    with pytest.raises(UserError, match=r"2\.png is coloured"):
        data_module.Photographs(photographs, tmp_path / "c3")
    mask.write_bytes(labels)
    (photographs / "b" / "masks" / "2.png").unlink()
    with pytest.raises(UserError, match=r"has no label map"):
        data_module.Photographs(photographs, tmp_path / "c4")


def test_other_labels_are_read_anew(photographs: Path, tmp_path: Path) -> None:
    make = script("vit_t_photographs").Photographs
    assert set(np.unique(make(photographs, tmp_path / "cache")[1][1])) == {0, 1}
    mask = photographs / "a" / "masks" / "1.png"
    Image.fromarray(np.asarray(Image.open(mask)) * 7).save(mask)
    assert set(np.unique(make(photographs, tmp_path / "cache")[1][1])) == {0, 7}
    void = photographs / "a" / "void" / "1.png"
    Image.fromarray(np.full((60, 80), 1, np.uint8)).save(void)
    assert set(np.unique(make(photographs, tmp_path / "cache")[1][1])) == {65535}


def test_small_sets_hold_out_an_image_and_single_ones_are_refused(
    photographs: Path, tmp_path: Path
) -> None:
    make = script("vit_t_photographs").Photographs
    assert make(photographs, tmp_path / "cache").validation == [1, 4]
    for file in photographs.glob("*/images/[12].jpg"):
        file.unlink()
    with pytest.raises(UserError, match="sets of one image only"):
        make(photographs, tmp_path / "cache")


def test_a_resumed_run_takes_the_rates_that_are_asked_for_now(
    tmp_path: Path, trainer_at: Callable[..., Any]
) -> None:
    first = trainer_at(tmp_path)
    first.save()
    second = trainer_at(tmp_path)
    second.settings = replace(second.settings, decoder_lr=0.25)
    second.resume()
    assert {group["share"] for group in second.optimizer.param_groups} == {1.0, 0.25}


def test_exported_weights_load_and_are_the_average(tmp_path: Path) -> None:
    from structsam import load_sam

    train, module = script(), script("vit_t_trainer")
    trainer = module.Trainer(model_spec("vit_t"), module.Settings(steps=1), tmp_path, "cpu")
    trainer.average[0].fill_(0.25)
    trainer.save()
    target = tmp_path / "vit_t.safetensors"
    train.run(["--out", str(tmp_path), "--export", str(target)])
    assert target.stat().st_size < 25e6
    name = next(name for name, _ in trainer.sam.named_parameters())
    assert bool((load_sam("vit_t", checkpoint=target).state_dict()[name] == 0.25).all())
    fresh = module.Trainer(model_spec("vit_t"), module.Settings(steps=1, seed=1), tmp_path, "cpu")
    fresh.start_from(target)
    assert bool((fresh.parameters[0] == 0.25).all())


def test_the_start_looks_at_frequencies_that_do_not_overlap() -> None:
    sam = script("vit_t_init").initialised_sam(model_spec("vit_t"), 0)
    rows = sam.image_encoder.patch_embed.proj.weight.flatten(1)
    products = rows @ rows.T
    off = products - torch.diag(products.diagonal())
    assert products.diagonal().min() > 5e-4
    assert off.abs().max() < 1e-4


def test_the_heads_start_beside_their_token() -> None:
    """Of an empty window only positions count: the first head looks around, the others aside."""
    sam = script("vit_t_init").initialised_sam(model_spec("vit_t"), 0)
    for index, block in enumerate(sam.image_encoder.blocks):
        if not block.window_size:
            continue
        attn, size, dim = block.attn, block.window_size, 64
        offset = torch.arange(2 * size - 1) - (size - 1)
        places = []
        for head in range(3):
            q = attn.qkv.bias[head * dim : (head + 1) * dim]
            down = (attn.rel_pos_h @ q).softmax(0)
            right = (attn.rel_pos_w @ q).softmax(0)
            places.append(((down * offset).sum(), (right * offset).sum()))
        reach = [float(torch.hypot(*place).detach()) for place in places]
        assert reach[0] < 0.05
        np.testing.assert_allclose(reach[1:], 1.3, atol=0.1)
        # the two others look in opposite directions, and not in the same in every block
        assert abs(float(places[1][0] + places[2][0])) < 0.1, index


def test_a_point_starts_by_attending_to_its_place() -> None:
    sam = script("vit_t_init").initialised_sam(model_spec("vit_t"), 0)
    attn = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    encoder = sam.prompt_encoder.pe_layer
    position = encoder((16, 16)).flatten(1).T  # [256, 256]
    q = attn.q_proj(position).view(-1, 8, 16).transpose(0, 1)
    k = attn.k_proj(position).view(-1, 8, 16).transpose(0, 1)
    share = (q @ k.transpose(1, 2) / 4).softmax(-1).mean(0)
    rows, columns = torch.arange(256) // 16, torch.arange(256) % 16
    away = torch.hypot((rows[:, None] - rows).float(), (columns[:, None] - columns).float())
    assert (share * (away <= 2)).sum(1).mean() > 2 * (away <= 2).float().mean()
    assert (share.argmax(1) == torch.arange(256)).float().mean() > 0.8


def test_the_loss_weighs_small_and_large_objects_alike() -> None:
    """The same shape at half the size, wrong in the same way, costs about the same."""
    loss = script("vit_t_loss")._mask_loss
    costs = []
    for scale in (1, 2):
        target = torch.zeros(1, 1, 64, 64)
        target[..., : 16 * scale, : 16 * scale] = 1
        logits = torch.full((1, 1, 4, 64, 64), -6.0)
        logits[..., : 16 * scale, : 8 * scale] = 6.0
        ious = torch.full((1, 1, 4), 0.5)
        valid = torch.ones(1, 1, 64, 64)
        clicks = torch.zeros(1, 1, dtype=torch.bool)
        cost, iou, _ = loss(logits, ious, target, valid, clicks)
        assert iou == pytest.approx(0.5)
        costs.append(float(cost))
    assert costs[0] == pytest.approx(costs[1], rel=0.1)


def test_weights_and_teacher_are_scored_on_the_same_photos(
    photographs: Path,
    tmp_path: Path,
    trainer_at: Callable[..., Any],
    teacher: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script("vit_t_photographs"), "_HELD_OUT", 3)
    monkeypatch.setattr(script(), "STAGES", script("vit_t_trainer").STAGES[:1])
    trainer = trainer_at(tmp_path / "run", teacher=teacher)
    script()._tell_scores(trainer, photographs)
    weights, lent = capsys.readouterr().out.splitlines()
    assert weights.startswith("weights: box IoU 0.") and lent.startswith("teacher: box IoU 0.")
    assert weights.split("filled")[1] == lent.split("filled")[1]
    assert weights.split(":")[1] != lent.split(":")[1]
