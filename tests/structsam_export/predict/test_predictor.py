"""A fake backend answers with what it was fed, so that prompts and shapes can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.models import MODELS
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, PartName, TensorSpec
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.preprocessing import image_geometry
from structsam_export.predict.prompts import read_prompts
from structsam_export.runtimes import BACKENDS, Backend, Runner, RunOptions

SIDE, LOW, CHANNELS, MAX_P, MAX_K = 64, 16, 8, 4, 6
HEIGHT, WIDTH = 30, 50
PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PREPROCESSING = replace(MODELS["vit_b"].preprocessing, image_size=SIDE)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, shape, "float32")


def fake_bundle(
    path: Path = Path("fake-bundle"), min_p: int = 1, takes_box: bool = False, **model: Any
) -> Bundle:
    embeddings = spec("image_embeddings", 1, CHANNELS, 4, 4)
    image = (spec("image", 1, 3, SIDE, SIDE), *([spec("prompt_box", 1, 4)] if takes_box else []))
    encoder = Part("encoder.onnx", image, (embeddings,))
    decoder = Part(
        "decoder.onnx",
        (
            embeddings,
            spec("point_coords", "P", "K", 2),
            spec("point_labels", "P", "K"),
            spec("mask_input", "P", 1, LOW, LOW),
            spec("has_mask_input", "P"),
        ),
        (spec("low_res_masks", "P", 4, LOW, LOW), spec("iou_predictions", "P", 4)),
        {"P": (min_p, min_p, MAX_P), "K": (1, 2, MAX_K)},
    )
    manifest = {
        "name": path.name,
        "preprocessing": PREPROCESSING.to_dict(),
        "encoder": encoder.to_dict(),
        "decoder": decoder.to_dict(),
        "model": {"name": "fake", "weights": "random"} | model,
        "merging": {"rate": 0.5},
    }
    return Bundle(path, manifest)


class FakeRunner(Runner):
    def __init__(self, part: Part, backend: FakeBackend) -> None:
        super().__init__(part)
        self.backend = backend

    def open(self) -> None:
        self.backend.opened.append(self.part.file)

    def close(self) -> None:
        self.backend.closed.append(self.part.file)

    def _run(
        self, feeds: dict[str, np.ndarray], outputs: Sequence[TensorSpec]
    ) -> dict[str, np.ndarray]:
        self.backend.fed.append(feeds)
        if "image" in feeds:
            value = self.backend.embedding
            return {"image_embeddings": np.full((1, CHANNELS, 4, 4), value, np.float32)}
        # score of output c of a prompt: x of its first point, + c / 8; masks: that everywhere
        scores = feeds["point_coords"][:, 0, :1] + np.arange(4, dtype=np.float32) / 8
        scores += 0 * feeds["image_embeddings"].max()  # so that NaN stays NaN
        masks = np.broadcast_to(scores[..., None, None], (*scores.shape, LOW, LOW))
        return {"low_res_masks": masks.copy(), "iou_predictions": scores}


class FakeBackend(Backend):
    name, title = "fake", "answers with what it was fed"

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.fed: list[dict[str, np.ndarray]] = []
        self.embedding = 7.0
        self.options: RunOptions | None = None

    def why_unavailable(self) -> str | None:
        return None

    def runner(self, bundle: Bundle, part: PartName, options: RunOptions) -> Runner:
        self.options = options
        return FakeRunner(bundle.part(part), self)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend()
    monkeypatch.setitem(BACKENDS, "fake", backend)
    return backend


@pytest.fixture
def predictor(fake: FakeBackend) -> Predictor:
    predictor = fake_bundle().predictor(backend="fake")
    predictor.set_image(PHOTO)
    return predictor


def test_points_are_followed_by_one_padding_point(fake: FakeBackend, predictor: Predictor) -> None:
    predictor.predict(np.array([[10, 20], [30, 5]]), np.array([1, 0]))
    fed = fake.fed[-1]
    scale = [SIDE / WIDTH, 38 / HEIGHT]  # int(30 * 64 / 50 + 0.5) = 38
    expected = [[[10 * scale[0], 20 * scale[1]], [30 * scale[0], 5 * scale[1]], [0, 0]]]
    np.testing.assert_allclose(fed["point_coords"], expected, rtol=1e-6)
    np.testing.assert_array_equal(fed["point_labels"], [[1, 0, -1]])
    np.testing.assert_array_equal(fed["has_mask_input"], [0])
    assert not fed["mask_input"].any()
    np.testing.assert_array_equal(fed["image_embeddings"], predictor.get_image_embedding())


def test_a_box_becomes_its_corners(fake: FakeBackend, predictor: Predictor) -> None:
    predictor.predict(box=np.array([0, 0, WIDTH, HEIGHT]))
    np.testing.assert_allclose(fake.fed[-1]["point_coords"], [[[0, 0], [SIDE, 38]]], rtol=1e-6)
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[2, 3]])


def test_points_come_before_the_box_without_padding(
    fake: FakeBackend, predictor: Predictor
) -> None:
    predictor.predict(np.array([[25, 0]]), np.array([0]), box=np.array([0, 0, WIDTH, HEIGHT]))
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[0, 2, 3]])
    np.testing.assert_allclose(fake.fed[-1]["point_coords"][0], [[32, 0], [0, 0], [SIDE, 38]])


@pytest.mark.parametrize("kind", ["points", "box", "both"])
def test_order_equals_the_stock_prompt_encoder(kind: str) -> None:
    """Embed our flat list label by label, and compare with what `PromptEncoder` makes."""
    torch = pytest.importorskip("torch")
    segment_anything = pytest.importorskip("segment_anything")
    torch.manual_seed(0)
    encoder = segment_anything.modeling.PromptEncoder(16, (4, 4), (SIDE, SIDE), 4)
    points = np.array([[10.0, 20.0], [30.0, 5.0]]) if kind != "box" else None
    labels = np.array([1, 0]) if kind != "box" else None
    box = np.array([3.0, 4.0, 40.0, 20.0]) if kind != "points" else None
    geometry = image_geometry(
        SIDE, SIDE, PREPROCESSING
    )  # the image fills the input: same coordinates
    ours = read_prompts(points, labels, box, geometry)
    with torch.no_grad():
        expected, _ = encoder(
            points=None
            if points is None
            else (torch.as_tensor(points, dtype=torch.float)[None], torch.as_tensor(labels)[None]),
            boxes=None if box is None else torch.as_tensor(box, dtype=torch.float)[None],
            masks=None,
        )
        xy = torch.as_tensor(geometry.to_input(ours.coords)) + 0.5
        embedded = encoder.pe_layer.forward_with_coords(xy, (SIDE, SIDE))
        for index, label in enumerate(ours.labels[0]):
            if label == -1:
                embedded[0, index] = encoder.not_a_point_embed.weight[0]
            else:
                embedded[0, index] += encoder.point_embeddings[int(label)].weight[0]
    torch.testing.assert_close(embedded, expected)


def test_shapes_of_one_prompt(predictor: Predictor) -> None:
    masks, scores, low_res = predictor.predict(np.array([[10, 20]]), np.array([1]))
    assert masks.shape == (3, HEIGHT, WIDTH) and masks.dtype == bool
    assert scores.shape == (3,) and low_res.shape == (3, LOW, LOW)
    assert scores.dtype == low_res.dtype == np.float32


def test_multimask_is_outputs_one_to_three_and_single_is_output_zero(predictor: Predictor) -> None:
    point = np.array([[0, 0]]), np.array([1])
    np.testing.assert_array_equal(predictor.predict(*point)[1], [1 / 8, 2 / 8, 3 / 8])
    masks, scores, low_res = predictor.predict(*point, multimask_output=False)
    np.testing.assert_array_equal(scores, [0])
    assert masks.shape == (1, HEIGHT, WIDTH) and not low_res.any()


def test_logits_on_request(predictor: Predictor) -> None:
    masks, scores, _ = predictor.predict(np.array([[25, 0]]), np.array([1]), return_logits=True)
    assert masks.dtype == np.float32
    np.testing.assert_allclose(masks, np.broadcast_to(scores[:, None, None], masks.shape))


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_many_boxes_are_cut_to_what_the_decoder_takes(
    fake: FakeBackend, predictor: Predictor, count: int, sizes: list[int]
) -> None:
    boxes = np.array([[x, 0, x + 5, 9] for x in range(count)])
    masks, scores, low_res = predictor.predict(box=boxes, multimask_output=False)
    assert masks.shape == (count, 1, HEIGHT, WIDTH)
    assert low_res.shape == (count, 1, LOW, LOW)
    np.testing.assert_allclose(scores[:, 0], boxes[:, 0] * SIDE / WIDTH, rtol=1e-6)
    assert [len(fed["point_labels"]) for fed in fake.fed[1:]] == sizes


def test_a_short_rest_is_filled_to_the_minimum_and_cut_again(fake: FakeBackend) -> None:
    predictor = Predictor(fake_bundle(min_p=MAX_P), backend="fake")
    predictor.set_image(PHOTO)
    boxes = np.array([[x, 0, x + 5, 9] for x in range(6)])
    scores = predictor.predict(box=boxes, multimask_output=False)[1]
    np.testing.assert_allclose(scores[:, 0], boxes[:, 0] * SIDE / WIDTH, rtol=1e-6)
    assert [len(fed["point_labels"]) for fed in fake.fed[1:]] == [MAX_P, MAX_P]


def test_many_prompts_of_points_and_boxes(fake: FakeBackend, predictor: Predictor) -> None:
    points, labels = np.ones((3, 2, 2)), np.array([[1, 0]] * 3)
    masks, _, _ = predictor.predict(points, labels, np.array([[0, 0, 9, 9]] * 3))
    assert masks.shape == (3, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[1, 0, 2, 3]] * 3)
    predictor.predict(points, labels)
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[1, 0, -1]] * 3)


def test_mask_input_is_passed_on(fake: FakeBackend, predictor: Predictor) -> None:
    point = np.array([[10, 20]]), np.array([1])
    low_res = predictor.predict(*point)[2]
    predictor.predict(*point, mask_input=low_res[1][None])
    np.testing.assert_array_equal(fake.fed[-1]["mask_input"][0, 0], low_res[1])
    np.testing.assert_array_equal(fake.fed[-1]["has_mask_input"], [1])
    predictor.predict(box=np.array([[0, 0, 9, 9]] * 6), mask_input=np.ones((6, 1, LOW, LOW)))
    assert fake.fed[-1]["mask_input"].shape == (2, 1, LOW, LOW)


def test_bgr_is_turned_round(fake: FakeBackend, predictor: Predictor) -> None:
    predictor.set_image(PHOTO[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(fake.fed[0]["image"], fake.fed[-1]["image"])


def test_a_checkpoint_that_is_not_read_is_refused(fake: FakeBackend) -> None:
    with pytest.raises(UserError, match=r"`checkpoint=` is for `backend=torch`, and fake runs"):
        Predictor(fake_bundle(), backend="fake", checkpoint="nowhere.pth")


def test_networks_open_late_and_once_and_close(
    fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "needs_weights", True)
    with Predictor(fake_bundle(), backend="fake", threads=3, checkpoint="w.pth") as predictor:
        assert fake.opened == [] and not predictor.is_image_set
        for _ in range(2):
            predictor.set_image(PHOTO)
        assert fake.opened == ["encoder.onnx"] and predictor.is_image_set
        for _ in range(2):
            predictor.predict(np.array([[1, 1]]), np.array([1]))
        assert fake.opened == ["encoder.onnx", "decoder.onnx"]
        assert predictor.describe() == {"backend": "fake", "encoder": {}, "decoder": {}}
    predictor.close()
    assert sorted(fake.closed) == ["decoder.onnx", "encoder.onnx"] and not predictor.is_image_set
    assert fake.options == RunOptions(threads=3, checkpoint=Path("w.pth"))


def test_timings(predictor: Predictor) -> None:
    predictor.predict(np.array([[1, 1]]), np.array([1]))
    assert list(predictor.timings) == ["preprocess", "encode", "decode", "upscale"]
    assert all(milliseconds > 0 for milliseconds in predictor.timings.values())


def test_reset_image(predictor: Predictor) -> None:
    predictor.reset_image()
    assert not predictor.is_image_set and predictor.geometry is None
    with pytest.raises(UserError, match="set_image"):
        predictor.predict(np.array([[1, 1]]), np.array([1]))
    with pytest.raises(UserError, match="set_image"):
        predictor.get_image_embedding()


def test_a_bad_image_keeps_the_current_one(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="float32"):
        predictor.set_image(PHOTO.astype(np.float32))
    with pytest.raises(UserError, match="RGB, BGR"):
        predictor.set_image(PHOTO, image_format="rgb")
    assert predictor.is_image_set


def test_an_encoder_that_overflows_is_reported(fake: FakeBackend) -> None:
    fake.embedding = float("nan")
    predictor = Predictor(fake_bundle(), backend="fake")
    predictor.set_image(PHOTO)
    with pytest.raises(UserError, match="the encoder of fake-bundle returned .* not finite"):
        predictor.get_image_embedding()
    with pytest.raises(UserError, match="the encoder of fake-bundle returned .* not finite"):
        predictor.predict(box=np.array([0, 0, 9, 9]))


def test_unknown_backend() -> None:
    with pytest.raises(UserError, match="unknown backend 'warp'"):
        fake_bundle().predictor(backend="warp")


POINT, LABEL, BOX = [[5, 5]], [1], [0, 0, 9, 9]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "no prompt"),
        ({"mask_input": np.zeros((1, LOW, LOW))}, "no prompt"),
        ({"point_coords": POINT}, "without point_labels"),
        ({"point_labels": LABEL}, "without point_coords"),
        ({"point_coords": [5, 5], "point_labels": LABEL}, r"shape \(2,\)"),
        ({"point_coords": [[5, 5, 5]], "point_labels": LABEL}, r"shape \(1, 3\)"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": []}, r"shape \(0, 2\)"),
        ({"point_coords": POINT, "point_labels": [1, 1]}, "should have"),
        ({"point_coords": POINT, "point_labels": [2]}, r"\[2.0\]"),
        ({"point_coords": POINT, "point_labels": [0.5]}, r"\[0.5\]"),
        ({"point_coords": [["5", "5"]], "point_labels": LABEL}, "numbers"),
        ({"point_coords": [[5, None]], "point_labels": LABEL}, "numbers"),
        ({"point_coords": [[5, 5], [5]], "point_labels": [1, 1]}, "ragged"),
        ({"point_coords": [[5, np.nan]], "point_labels": LABEL}, "NaN"),
        ({"point_coords": [[WIDTH, 5]], "point_labels": LABEL}, "outside the image of 50 x 30"),
        ({"point_coords": [[5, -1]], "point_labels": LABEL}, "outside"),
        ({"box": [1, 2, 3]}, r"shape \(3,\)"),
        ({"box": np.zeros((2, 2, 4))}, "shape"),
        ({"box": np.zeros((0, 4))}, "shape"),
        ({"box": 5}, "shape"),
        ({"box": [9, 0, 0, 9]}, "inverted"),
        ({"box": [5, 5, 5, 9]}, "empty"),
        ({"box": [0, 0, WIDTH + 1, 9]}, "outside the image of 50 x 30"),
        ({"box": [0, -1, 9, 9]}, "outside"),
        ({"box": [0, 0, np.inf, 9]}, "infinity"),
        ({"box": [True, True, False, False]}, "bool"),
        ({"point_coords": POINT, "point_labels": LABEL, "box": [BOX, BOX]}, "do not go with"),
        ({"point_coords": POINT, "point_labels": LABEL, "box": [BOX]}, "do not go with"),
        ({"point_coords": [POINT], "point_labels": [LABEL], "box": BOX}, "do not go with"),
        ({"point_coords": [POINT] * 3, "point_labels": [LABEL] * 3, "box": [BOX] * 2}, "do not go"),
        ({"point_coords": POINT * MAX_K, "point_labels": LABEL * MAX_K}, "up to 6"),
        ({"box": BOX, "mask_input": np.zeros((LOW, LOW))}, "mask_input has shape"),
        ({"box": [BOX] * 2, "mask_input": np.zeros((1, LOW, LOW))}, "mask_input has shape"),
        ({"box": BOX, "mask_input": np.full((1, LOW, LOW), np.nan)}, "mask_input holds NaN"),
    ],
)
def test_bad_prompts_are_refused_in_one_line(
    predictor: Predictor, prompt: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predictor.predict(**prompt)
    assert "\n" not in str(caught.value)


LAX = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def test_everything_keeps_the_image_that_was_set_and_forgets_the_one_it_was_given(
    fake: FakeBackend, predictor: Predictor
) -> None:
    kept = predictor.everything(points_per_side=2, **LAX)
    assert predictor.is_image_set and sum("image" in fed for fed in fake.fed) == 1
    given = predictor.everything(PHOTO, points_per_side=2, **LAX)
    assert not predictor.is_image_set and sum("image" in fed for fed in fake.fed) == 2
    assert [record["area"] for record in kept] == [record["area"] for record in given]
    assert len(kept) == 4 * 3 and set(predictor.timings) >= {"encode", "decode", "upscale"}
    with pytest.raises(UserError, match="no image is set"):
        predictor.everything()


def test_everything_needs_the_image_for_crops(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="encoded anew"):
        predictor.everything(crop_n_layers=1)
    with pytest.raises(UserError, match="uint8"):
        predictor.everything(PHOTO / 255)


def test_everything_with_a_prompt_aware_bundle_encodes_the_whole_image_once(
    fake: FakeBackend,
) -> None:
    predictor = fake_bundle(takes_box=True).predictor(backend="fake")
    predictor.everything(PHOTO, points_per_side=3, points_per_batch=2, **LAX)
    encoded = [fed for fed in fake.fed if "image" in fed]
    assert len(encoded) == 1
    assert encoded[0]["prompt_box"].tolist() == [[0, 0, SIDE, round(SIDE * HEIGHT / WIDTH)]]
    assert predictor.timings["encode"] > 0
