"""The decoder that is shipped equals the stock prompt encoder and mask decoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.mask_iou import mask_iou
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.runtimes import BACKENDS, Runner, RunOptions

torch = pytest.importorskip("torch")
modeling = pytest.importorskip("segment_anything.modeling")

INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
SIDE, GRID = 256, 16
Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sam(tiny_sam_factory: Callable[..., Any]) -> Any:
    return tiny_sam_factory(seed=0)


@pytest.fixture(scope="module")
def ort_decoder(tiny_bundle: Bundle) -> Iterator[Runner]:
    with BACKENDS["onnxruntime"].runner(tiny_bundle, "decoder", RunOptions()) as runner:
        yield runner


@pytest.fixture(scope="module")
def embedding() -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=(1, 256, GRID, GRID))
    return noise.astype(np.float32)


def feeds(
    embedding: np.ndarray, coords: Any, labels: Any, mask_input: np.ndarray | None = None
) -> Feeds:
    labels = np.asarray(labels, np.float32)
    count = len(labels)
    empty = np.zeros((count, 1, 4 * GRID, 4 * GRID), np.float32)
    return {
        "image_embeddings": embedding,
        "point_coords": np.asarray(coords, np.float32),
        "point_labels": labels,
        "mask_input": empty if mask_input is None else mask_input,
        "has_mask_input": np.full(count, mask_input is not None, np.float32),
    }


def run_module(sam: Any, inputs: Feeds, precision: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    from structsam_export.graph.modules import DecoderModule

    with torch.inference_mode():
        module = DecoderModule(sam, precision)
        masks, scores = module(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return masks.numpy(), scores.numpy()


def stock(
    sam: Any,
    embedding: np.ndarray,
    points: tuple[Any, Any] | None = None,
    boxes: Any = None,
    masks: np.ndarray | None = None,
    pad: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """segment-anything itself. `pad` bypasses its choice to add a padding point."""

    def tensor(values: Any) -> Any:
        return None if values is None else torch.as_tensor(np.asarray(values, np.float32))

    with torch.inference_mode():
        pair = None if points is None else (tensor(points[0]), tensor(points[1]))
        sparse, dense = sam.prompt_encoder(pair, tensor(boxes), tensor(masks))
        if pad is not None:
            sparse = sam.prompt_encoder._embed_points(*pair, pad=pad)
        logits, scores = sam.mask_decoder.predict_masks(
            image_embeddings=torch.from_numpy(embedding),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
    return logits.numpy(), scores.numpy()


def assert_close(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()))


def assert_both_equal(
    sam: Any, runner: Runner, inputs: Feeds, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    assert_close(run_module(sam, inputs), expected)
    outputs = runner.run(inputs)
    assert_close((outputs["low_res_masks"], outputs["iou_predictions"]), expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_points_of_any_number_and_label(
    sam: Any, ort_decoder: Runner, embedding: np.ndarray, count: int, length: int
) -> None:
    rng = np.random.default_rng(10 * count + length)
    coords = rng.uniform(0, SIDE, (count, length, 2))
    labels = rng.integers(-1, 2, (count, length))
    expected = stock(sam, embedding, (coords, labels), pad=False)
    assert expected[0].shape == (count, 4, 64, 64) and expected[1].shape == (count, 4)
    assert_both_equal(sam, ort_decoder, feeds(embedding, coords, labels), expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_points_alone_are_padded(
    sam: Any, ort_decoder: Runner, embedding: np.ndarray, count: int, length: int
) -> None:
    rng = np.random.default_rng(length)
    coords = rng.uniform(0, SIDE, (count, length, 2))
    labels = rng.integers(0, 2, (count, length))
    padded = np.concatenate([coords, np.zeros((count, 1, 2))], 1)
    with_padding = np.concatenate([labels, np.full((count, 1), -1)], 1)
    expected = stock(sam, embedding, (coords, labels))
    assert_both_equal(sam, ort_decoder, feeds(embedding, padded, with_padding), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_boxes(sam: Any, ort_decoder: Runner, embedding: np.ndarray, count: int) -> None:
    boxes = np.array([[10, 20, 100, 90], [0, 0, 255, 255], [40.5, 7, 60, 200]])[:count]
    expected = stock(sam, embedding, boxes=boxes)
    inputs = feeds(embedding, boxes.reshape(-1, 2, 2), [[2, 3]] * count)
    assert_both_equal(sam, ort_decoder, inputs, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_points_with_a_box(
    sam: Any, ort_decoder: Runner, embedding: np.ndarray, count: int
) -> None:
    rng = np.random.default_rng(3)
    points, labels = rng.uniform(0, SIDE, (count, 3, 2)), np.array([[1, 0, 1]] * count)
    boxes = np.array([[10, 20, 100, 90]] * count)
    expected = stock(sam, embedding, (points, labels), boxes)
    coords = np.concatenate([points, boxes.reshape(-1, 2, 2)], 1)
    kinds = np.concatenate([labels, [[2, 3]] * count], 1)
    assert_both_equal(sam, ort_decoder, feeds(embedding, coords, kinds), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_a_mask_of_an_earlier_prediction(
    sam: Any, ort_decoder: Runner, embedding: np.ndarray, count: int
) -> None:
    rng = np.random.default_rng(4)
    earlier = rng.normal(scale=5, size=(count, 1, 64, 64)).astype(np.float32)
    boxes = np.array([[10, 20, 100, 90]] * count)
    expected = stock(sam, embedding, boxes=boxes, masks=earlier)
    inputs = feeds(embedding, boxes.reshape(-1, 2, 2), [[2, 3]] * count, earlier)
    assert_both_equal(sam, ort_decoder, inputs, expected)
    inputs["has_mask_input"][:] = 0  # then its content must not matter
    assert_both_equal(sam, ort_decoder, inputs, stock(sam, embedding, boxes=boxes))


def test_a_prompt_does_not_see_the_others(ort_decoder: Runner, embedding: np.ndarray) -> None:
    rng = np.random.default_rng(6)
    earlier = rng.normal(scale=5, size=(3, 1, 64, 64)).astype(np.float32)
    coords = rng.uniform(0, SIDE, (3, 2, 2))
    inputs = feeds(embedding, coords, [[1, -1], [2, 3], [0, 1]], earlier)
    inputs["has_mask_input"][:] = [1, 0, 1]
    together = ort_decoder.run(inputs)
    for prompt in range(3):
        alone = {n: a[prompt : prompt + 1] for n, a in inputs.items() if n != "image_embeddings"}
        outputs = ort_decoder.run({"image_embeddings": embedding, **alone})
        assert_close(
            tuple(outputs[name] for name in outputs),
            tuple(together[name][prompt : prompt + 1] for name in outputs),
        )


def test_the_largest_profile_runs(ort_decoder: Runner, embedding: np.ndarray) -> None:
    most_prompts, most_points = (ort_decoder.part.profile[name][2] for name in "PK")
    assert (most_prompts, most_points) == (64, 16)
    coords = np.full((most_prompts, most_points, 2), 7.0)
    outputs = ort_decoder.run(feeds(embedding, coords, np.ones((most_prompts, most_points))))
    assert outputs["low_res_masks"].shape == (64, 4, 64, 64)
    assert np.isfinite(outputs["low_res_masks"]).all()


def test_the_fp16_decoder_is_near_and_leaves_the_model_alone(
    sam: Any, embedding: np.ndarray
) -> None:
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    inputs = feeds(embedding, [[[60, 80], [200, 180]]], [[2, 3]])
    exact, half = run_module(sam, inputs), run_module(sam, inputs, "fp16")
    for a, b in zip(half, exact, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert 0 < error < 1e-2
    after = sam.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_mixed_fp16_keeps_norms_in_float32(sam: Any) -> None:
    from segment_anything.modeling.common import LayerNorm2d

    from structsam_export.graph.mixed_precision import Float32Norm, to_mixed_fp16

    for original in (sam.image_encoder, sam.prompt_encoder, sam.mask_decoder):
        modules = list(original.modules())
        before = {key: value.clone() for key, value in original.state_dict().items()}
        mixed = to_mixed_fp16(original)
        kinds = (torch.nn.LayerNorm, LayerNorm2d)
        norms = [module for module in mixed.modules() if isinstance(module, kinds)]
        wrapped = [module.norm for module in mixed.modules() if isinstance(module, Float32Norm)]
        assert len(norms) == len(wrapped) == sum(isinstance(m, kinds) for m in modules) > 0
        inside = {id(p) for norm in norms for p in norm.parameters()}
        for parameter in mixed.parameters():
            exact = id(parameter) in inside
            assert parameter.dtype == (torch.float32 if exact else torch.float16)
        weights = [
            torch.equal(a.weight, b.weight)
            for a, b in zip(norms, [m for m in modules if isinstance(m, kinds)], strict=True)
        ]
        assert all(weights)  # not rounded to float16 on the way
        assert list(original.modules()) == modules
        after = original.state_dict()
        assert all(
            after[k].dtype == v.dtype and torch.equal(after[k], v) for k, v in before.items()
        )


def test_a_float32_norm_computes_in_float32() -> None:
    from structsam_export.graph.mixed_precision import Float32Norm

    norm = torch.nn.LayerNorm(64)
    x = (300 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).half()
    with torch.inference_mode():
        assert torch.equal(Float32Norm(norm)(x), norm(x.float()).half())
        assert Float32Norm(norm)(x).dtype == torch.float16


@pytest.fixture(scope="module")
def unmerged_bundle(
    tiny_bundle: Bundle, tiny_sam_factory: Callable[..., Any], tmp_path_factory: Any
) -> Bundle:
    """The FP32 bundle with the encoder at rate 0, exported for real."""
    from structsam.apply import apply_merging
    from structsam_export.graph.exporter import export_encoder
    from structsam_export.graph.modules import EncoderModule

    folder = tmp_path_factory.mktemp("unmerged") / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    bundle = open_bundle(folder)
    own = apply_merging(tiny_sam_factory(seed=0), rate=0.0)
    part = export_encoder(EncoderModule(own.image_encoder), folder, "encoder.onnx")
    assert part.plan_outputs == ()  # rate 0 plans nothing
    bundle.manifest["encoder"] = part.to_dict()
    bundle.record_file("encoder.onnx")
    bundle.save_manifest()
    return bundle


@pytest.mark.slow
def test_the_predictor_draws_the_masks_of_sam_predictor(
    sam: Any, unmerged_bundle: Bundle, tiny_photo: Path
) -> None:
    from segment_anything import SamPredictor

    photo = np.asarray(Image.open(tiny_photo).convert("RGB"))
    theirs = SamPredictor(sam)
    assert theirs.transform.target_length == SIDE
    theirs.set_image(photo)
    box = np.array([28, 18, 72, 52])
    with unmerged_bundle.predictor("onnxruntime") as ours:
        ours.set_image(photo)
        expected = theirs.get_image_embedding().numpy()
        error = np.linalg.norm(ours.get_image_embedding() - expected) / np.linalg.norm(expected)
        assert error < 1e-5
        prompts: list[dict[str, Any]] = [
            {"point_coords": np.array([[50, 35]]), "point_labels": np.array([1])},
            {"point_coords": np.array([[50, 35], [100, 70]]), "point_labels": np.array([1, 0])},
            {"box": box},
            {"point_coords": np.array([[50, 35]]), "point_labels": np.array([0]), "box": box},
        ]
        for prompt in prompts:
            for multimask in (True, False):
                a = ours.predict(**prompt, multimask_output=multimask)
                b = theirs.predict(**prompt, multimask_output=multimask)
                assert [x.shape for x in a] == [x.shape for x in b]
                assert a[0].dtype == b[0].dtype == bool
                assert mask_iou(a[0], b[0]).min() >= 0.99
                assert_close(a[1:], b[1:])
        again = {**prompts[0], "mask_input": theirs.predict(**prompts[0])[2][:1]}
        a, b = ours.predict(**again), theirs.predict(**again)
        assert mask_iou(a[0], b[0]).min() >= 0.99
        assert_close(a[1:], b[1:])
