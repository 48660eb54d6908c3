"""A prompt-aware bundle: its embedding belongs to one box, and follows the box."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.predict.prediction import predict_image
from structsam_export.predict.predictor import Predictor
from structsam_export.runtimes import BACKENDS
from tests.structsam_export.predict.test_predictor import (
    HEIGHT,
    PHOTO,
    SIDE,
    WIDTH,
    FakeBackend,
    fake_bundle,
)

ONE, OTHER = (5.0, 6.0, 25.0, 16.0), (0.0, 0.0, 50.0, 30.0)


class CountingBackend(FakeBackend):
    """Every encoding gives another embedding, so that one can see which is decoded."""

    def runner(self, bundle, part, options):
        runner = super().runner(bundle, part, options)
        inner = runner._run

        def run(feeds, outputs):
            if "image" in feeds:
                self.embedding += 1
            return inner(feeds, outputs)

        runner._run = run
        return runner

    @property
    def encoded(self) -> list[list[float]]:
        """The boxes that the encoder was fed, in the network's pixels."""
        return [feeds["prompt_box"][0].tolist() for feeds in self.fed if "image" in feeds]

    @property
    def decoded(self) -> list[float]:
        """Which embedding each call of the decoder saw."""
        return [float(f["image_embeddings"].max()) for f in self.fed if "point_coords" in f]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> CountingBackend:
    backend = CountingBackend()
    backend.embedding = 0.0
    monkeypatch.setitem(BACKENDS, "fake", backend)
    return backend


@pytest.fixture
def predictor(fake: CountingBackend) -> Predictor:
    predictor = fake_bundle(takes_box=True).predictor(backend="fake")
    predictor.set_image(PHOTO)
    return predictor


def in_input(box: tuple[float, ...]) -> list[float]:
    scale = np.array([SIDE / WIDTH, 38 / HEIGHT] * 2)  # int(30 * 64 / 50 + 0.5) = 38
    return pytest.approx((np.array(box) * scale).tolist())


def test_the_encoder_waits_for_the_box(fake: CountingBackend, predictor: Predictor) -> None:
    assert predictor.is_image_set and fake.encoded == [] and predictor.prompt_box is None
    predictor.predict(box=np.array(ONE))
    assert fake.encoded == [in_input(ONE)]
    assert predictor.prompt_box == ONE


def test_the_same_box_is_encoded_once(fake: CountingBackend, predictor: Predictor) -> None:
    for _ in range(3):
        predictor.predict(box=np.array(ONE))
    assert len(fake.encoded) == 1 and fake.decoded == [1, 1, 1]
    assert predictor.timings["encode"] == 0


def test_another_box_encodes_again_and_so_does_going_back(
    fake: CountingBackend, predictor: Predictor
) -> None:
    for box in (ONE, OTHER, ONE):
        predictor.predict(box=np.array(box))
        assert predictor.prompt_box == box
    assert fake.encoded == [in_input(ONE), in_input(OTHER), in_input(ONE)]
    assert fake.decoded == [1, 2, 3]


def test_every_box_of_a_batch_has_its_own_embedding(
    fake: CountingBackend, predictor: Predictor
) -> None:
    masks, scores, _ = predictor.predict(box=np.array([ONE, OTHER, ONE]))
    assert masks.shape == (3, 3, HEIGHT, WIDTH) and scores.shape == (3, 3)
    assert fake.encoded == [in_input(ONE), in_input(OTHER), in_input(ONE)]
    assert fake.decoded == [1, 2, 3]
    # the score is the x of the prompt's first point: each decoding saw its own prompt
    assert scores[:, 0] == pytest.approx([5 * SIDE / WIDTH + 1 / 8, 1 / 8, 6.4 + 1 / 8])


def test_points_without_a_box_use_the_whole_photo(
    fake: CountingBackend, predictor: Predictor
) -> None:
    predictor.predict(np.array([[10, 20]]), np.array([1]))
    predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert fake.encoded == [in_input(OTHER)] and predictor.prompt_box is None
    predictor.predict(box=np.array(ONE))
    predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert fake.encoded[1:] == [in_input(ONE), in_input(OTHER)]


def test_points_with_a_box_use_the_box(fake: CountingBackend, predictor: Predictor) -> None:
    predictor.predict(np.array([[10, 20]]), np.array([1]), box=np.array(ONE))
    assert fake.encoded == [in_input(ONE)]


def test_the_embedding_alone_can_be_asked_for(fake: CountingBackend, predictor: Predictor) -> None:
    assert predictor.get_image_embedding().max() == 1
    assert fake.encoded == [in_input(OTHER)]
    predictor.predict(box=np.array(ONE))
    assert predictor.get_image_embedding().max() == 2


def test_a_new_image_forgets_the_box(fake: CountingBackend, predictor: Predictor) -> None:
    predictor.predict(box=np.array(ONE))
    predictor.set_image(PHOTO)
    assert predictor.prompt_box is None
    predictor.predict(box=np.array(ONE))
    assert len(fake.encoded) == 2
    predictor.reset_image()
    with pytest.raises(UserError, match="no image is set"):
        predictor.predict(box=np.array(ONE))


def test_a_bad_box_is_refused_before_the_encoder_runs(
    fake: CountingBackend, predictor: Predictor
) -> None:
    with pytest.raises(UserError):
        predictor.predict(box=np.array([10, 10, 5, 20]))
    assert fake.encoded == []


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([ONE], "belongs to box 5,6,25,16: another box encodes the image again"),
        ([ONE, OTHER], "encoded once for each of the 2 boxes"),
        ([], "no box was given"),
    ],
)
def test_predict_says_what_the_embedding_belongs_to(
    boxes, words, fake: CountingBackend, tmp_path: Path
) -> None:
    photo = tmp_path / "cat.png"
    Image.fromarray(PHOTO).save(photo)
    points = [] if boxes else [(25, 3, 1)]
    bundle = fake_bundle(takes_box=True)
    result = predict_image(bundle, photo, points, boxes, tmp_path / "out", backend="fake")
    assert any(words in note for note in result.notes)
    assert json.loads(result.report.read_text())["notes"] == list(result.notes)
    assert len(fake.encoded) == max(1, len(boxes))
