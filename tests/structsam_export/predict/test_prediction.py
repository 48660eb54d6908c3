from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle.files import sha256_of
from structsam_export.predict.prediction import Prediction, Refused, predict_image, predict_images
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.prompts import parse_box, parse_point
from structsam_export.runtimes import BACKENDS
from tests.structsam_export.predict.test_predictor import (
    HEIGHT,
    PHOTO,
    WIDTH,
    FakeBackend,
    fake_bundle,
)

BUNDLE = fake_bundle()
BOXES = [(0, 0, 9, 9), (10, 0, 20, 9), (20, 5, 40, 20)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend()
    monkeypatch.setitem(BACKENDS, "fake", backend)
    return backend


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize(
    ("text", "point"),
    [("3,4", (3, 4, 1)), ("3.5, 4,0", (3.5, 4, 0)), ("3,4,1", (3, 4, 1))],
)
def test_parse_point(text: str, point: tuple[float, float, int]) -> None:
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["", "3", "3,4,2", "3,4,1,1", "a,b", "3;4", "3,4,nan", "3,4,"])
def test_parse_point_refuses(text: str) -> None:
    with pytest.raises(UserError, match="450,300") as caught:
        parse_point(text)
    assert repr(text) in str(caught.value)


def test_parse_box() -> None:
    assert parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1 2 3 4"])
def test_parse_box_refuses(text: str) -> None:
    with pytest.raises(UserError, match="100,50,400,300"):
        parse_box(text)


def test_a_point_gives_the_best_of_three_masks(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    result = predict_image(BUNDLE, photo, [(25, 3, 1)], out=tmp_path / "out", backend="fake")
    assert [path.name for path in result.masks] == ["mask_00.png"]
    mask = np.asarray(Image.open(result.masks[0]))
    assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 255}
    report = json.loads(result.report.read_text())
    assert report == result.details
    image = {"path": str(photo), "width": WIDTH, "height": HEIGHT}
    assert report["image"] == {**image, "sha256": sha256_of(photo)}
    assert (report["bundle"], report["model"], report["rate"]) == ("fake-bundle", "fake", 0.5)
    assert report["random_weights"] is True and report["backend"] == "fake"
    timings = report["timings_ms"]
    total = timings.pop("total")
    steps = ["load", "read", "preprocess", "encode", "decode", "upscale", "write"]
    assert list(timings) == steps and min(timings.values()) > 0
    assert sum(timings.values()) <= total + 0.01  # all is in the total
    (prompt,) = report["prompts"]
    assert prompt["points"] == [[25, 3, 1]] and prompt["box"] is None
    (entry,) = prompt["masks"]
    assert entry == {
        "file": "mask_00.png",
        "score": 32.375,
        "best": True,
        "output": 3,
        "pixels": HEIGHT * WIDTH,
    }
    assert mask.min() == 255
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "mask_00.png",
        "overlay.png",
        "prediction.json",
    ]


def test_each_box_is_a_prompt_with_one_mask(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    result = predict_image(BUNDLE, photo, boxes=BOXES, out=tmp_path / "out", backend="fake")
    assert [path.name for path in result.masks] == ["mask_00.png", "mask_01.png", "mask_02.png"]
    prompts = result.details["prompts"]
    assert [tuple(prompt["box"]) for prompt in prompts] == BOXES
    assert [prompt["masks"][0]["output"] for prompt in prompts] == [0, 0, 0]
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[2, 3]] * 3)


def test_points_with_one_box_are_one_prompt(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    points = [(5, 5, 1), (8, 8, 0)]
    result = predict_image(BUNDLE, photo, points, BOXES[:1], tmp_path / "out", backend="fake")
    np.testing.assert_array_equal(fake.fed[-1]["point_labels"], [[1, 0, 2, 3]])
    assert len(result.masks) == 1


def test_all_masks(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    options = {"out": tmp_path / "out", "backend": "fake", "all_masks": True}
    result = predict_image(BUNDLE, photo, boxes=BOXES[:2], **options)
    assert [path.name for path in result.masks] == [
        f"mask_{prompt:02d}_{index}.png" for prompt in range(2) for index in range(3)
    ]
    assert all(path.is_file() for path in result.masks)
    entries = result.details["prompts"][1]["masks"]
    assert [entry["output"] for entry in entries] == [1, 2, 3]
    assert [entry["best"] for entry in entries] == [False, False, True]


def test_no_prompt_means_the_centre_and_says_so(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    result = predict_image(BUNDLE, photo, out=tmp_path / "out", backend="fake")
    assert result.details["prompts"][0]["points"] == [[WIDTH / 2, HEIGHT / 2, 1]]
    assert any("centre (25, 15)" in note for note in result.notes)


def test_random_weights_are_written_on_the_overlay(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    random = predict_image(BUNDLE, photo, [(5, 5, 1)], out=tmp_path / "a", backend="fake")
    trained = fake_bundle(weights="sam_vit_b.pth")
    real = predict_image(trained, photo, [(5, 5, 1)], out=tmp_path / "b", backend="fake")
    assert Image.open(random.overlay).height > Image.open(real.overlay).height
    assert any("random weights" in note for note in random.notes)
    assert real.notes == () and real.details["random_weights"] is False


@pytest.mark.parametrize(("passed", "notes"), [(True, 0), (False, 1)])
def test_a_bundle_that_failed_parity_says_so(
    fake: FakeBackend, photo: Path, tmp_path: Path, passed: bool, notes: int
) -> None:
    bundle = fake_bundle(weights="sam_vit_b.pth")
    bundle.manifest["parity"] = {"passed": passed, "verdict": "as planted"}
    result = predict_image(bundle, photo, [(5, 5, 1)], out=tmp_path / "a", backend="fake")
    assert len(result.notes) == notes
    assert all("failed parity" in note for note in result.notes)


def test_default_folder_is_named_after_the_image(
    fake: FakeBackend, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert predict_image(BUNDLE, photo, backend="fake").folder == Path("cat-masks")
    assert (tmp_path / "work" / "cat-masks" / "overlay.png").is_file()


def test_a_second_run_leaves_no_masks_of_the_first_and_no_other_file_is_touched(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict_image(BUNDLE, photo, boxes=BOXES, out=out, backend="fake")
    (out / "mask_77.png").write_text("mine")
    predict_image(BUNDLE, photo, boxes=BOXES[:1], out=out, backend="fake")
    masks = sorted(path.name for path in out.glob("mask_*"))
    assert masks == ["mask_00.png", "mask_77.png"]


def test_a_damaged_report_names_no_file_to_delete(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    earlier = {"prompts": [{"masks": [{"file": "../cat.png"}, {"file": "notes.txt"}]}]}
    (out / "prediction.json").write_text(json.dumps(earlier))
    (out / "notes.txt").write_text("mine")
    predict_image(BUNDLE, photo, [(5, 5, 1)], out=out, backend="fake")
    assert photo.is_file() and (out / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("points", "boxes", "message"),
    [
        ([(5, 5, 1)], BOXES, "1 points with 3 boxes"),
        ([(500, 5, 1)], [], "outside"),
        ([], [(9, 9, 0, 0)], "inverted"),
        ([(float("nan"), 5, 1)], [], "NaN"),
    ],
)
def test_bad_prompts_are_refused_before_the_encoder_runs(
    fake: FakeBackend, photo: Path, tmp_path: Path, points: list, boxes: list, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict_image(BUNDLE, photo, points, boxes, tmp_path / "out", backend="fake")
    assert fake.opened == [] and not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(fake: FakeBackend, photo: Path) -> None:
    with pytest.raises(UserError, match="`out=`"):
        predict_image(BUNDLE, photo, out=photo, backend="fake")
    assert fake.opened == []


def test_no_time_is_counted_twice(
    fake: FakeBackend, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are enlarged one by one while the overlay is drawn, which is part of writing."""
    upscale = Predictor.upscale

    def slow(*arguments: Any) -> np.ndarray:
        time.sleep(0.3)
        return upscale(*arguments)

    monkeypatch.setattr(Predictor, "upscale", slow)
    result = predict_image(BUNDLE, photo, [(25, 3, 1)], out=tmp_path / "out", backend="fake")
    timings = dict(result.details["timings_ms"])
    assert timings["upscale"] >= 300
    total = timings.pop("total")
    assert sum(timings.values()) <= total + 0.01


def done(results: list[Prediction | Refused]) -> list[Prediction]:
    assert all(isinstance(result, Prediction) for result in results), results
    return results  # type: ignore[return-value]


@pytest.fixture
def namesakes(tmp_path: Path) -> list[Path]:
    """Two photos of one name in two folders."""
    paths = []
    for folder, picture in (("a", PHOTO), ("b", 255 - PHOTO)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "cat.png")
        paths.append(tmp_path / folder / "cat.png")
    return paths


def test_several_photos_share_one_session_and_each_has_its_folder(
    fake: FakeBackend, namesakes: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = done(list(predict_images(BUNDLE, namesakes, [(5, 5, 1)], out=out, backend="fake")))
    assert fake.opened == ["encoder.onnx", "decoder.onnx"] == fake.closed[::-1]
    assert [result.folder for result in results] == [out / "cat-masks", out / "cat-masks-2"]
    for path, result in zip(namesakes, results, strict=True):
        report = json.loads((result.folder / "prediction.json").read_text())
        assert report["image"]["path"] == str(path)
    assert results[0].details["timings_ms"]["load"] > results[1].details["timings_ms"]["load"]


def test_copies_of_one_photo_in_one_call_do_not_replace_each_other(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    results = done(list(predict_images(BUNDLE, [photo] * 2, out=tmp_path / "o", backend="fake")))
    assert len({result.folder for result in results}) == 2


def test_a_broken_photo_is_named_and_the_others_go_on(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    broken, small = tmp_path / "broken.png", tmp_path / "small.png"
    broken.write_bytes(photo.read_bytes()[:60])
    Image.fromarray(PHOTO[:4, :4]).save(small)
    images = [broken, small, tmp_path / "absent.png", photo]
    results = list(predict_images(BUNDLE, images, [(25, 3, 1)], out=tmp_path, backend="fake"))
    reasons = [str(result.reason) for result in results[:3] if isinstance(result, Refused)]
    assert "broken.png is damaged" in reasons[0]
    assert "outside the image of 4 x 4" in reasons[1] and "no image at" in reasons[2]
    assert done(results[3:])[0].folder == tmp_path / "cat-masks"
    assert not (tmp_path / "small-masks").exists()


def test_a_folder_of_another_photo_is_not_replaced(
    fake: FakeBackend, namesakes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (predict_image(BUNDLE, path, backend="fake") for path in namesakes)
    assert (first.folder, second.folder) == (Path("cat-masks"), Path("cat-masks-2"))
    again = predict_image(BUNDLE, namesakes[1], backend="fake")
    assert again.folder == second.folder  # its own is found again
    before = {path: path.read_bytes() for path in first.folder.iterdir()}
    with pytest.raises(UserError, match="holds the prediction of .*a/cat.png"):
        predict_image(BUNDLE, namesakes[1], out=first.folder, backend="fake")
    assert {path: path.read_bytes() for path in first.folder.iterdir()} == before


def test_the_same_photo_replaces_its_own_prediction_and_says_so(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    first = predict_image(BUNDLE, photo, [(5, 5, 1)], out=tmp_path / "out", backend="fake")
    moved = photo.rename(tmp_path / "moved.png")
    second = predict_image(BUNDLE, moved, [(5, 5, 1)], out=tmp_path / "out", backend="fake")
    assert not any("replaced" in note for note in first.notes)
    assert any("replaced the earlier prediction of moved.png" in note for note in second.notes)


def test_a_prediction_of_an_older_version_belongs_to_the_photo_at_its_place(
    fake: FakeBackend, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = predict_image(BUNDLE, photo, out=out, backend="fake")
    older = {**result.details, "image": {"path": str(photo)}}
    result.report.write_text(json.dumps(older))
    assert predict_image(BUNDLE, photo, out=out, backend="fake").folder == out
    result.report.write_text(json.dumps({**older, "image": {"path": str(tmp_path / "dog.png")}}))
    with pytest.raises(UserError, match="dog.png"):
        predict_image(BUNDLE, photo, out=out, backend="fake")


def test_no_overlay(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_image(BUNDLE, photo, boxes=BOXES[:2], out=out, backend="fake")
    result = predict_image(BUNDLE, photo, boxes=BOXES[:2], out=out, backend="fake", overlay=False)
    assert result.overlay is None
    written = sorted(path.name for path in out.iterdir())  # that of the first run is gone as well
    assert written == ["mask_00.png", "mask_01.png", "prediction.json"]
    pixels = [prompt["masks"][0]["pixels"] for prompt in result.details["prompts"]]
    assert pixels == [0, HEIGHT * WIDTH]


def test_a_low_score_is_worth_a_note(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    boxes = [(0, 0, 9, 9), (20, 5, 40, 20)]  # the fake's scores are 0 and 25.6
    trained = fake_bundle(weights="sam_vit_b.pth")
    result = predict_image(trained, photo, boxes=boxes, out=tmp_path / "a", backend="fake")
    (note,) = result.notes
    assert "low score (mask_00 0.00;" in note and result.details["notes"] == [note]
    random = predict_image(BUNDLE, photo, boxes=boxes, out=tmp_path / "b", backend="fake")
    assert not any("low score" in note for note in random.notes)


def test_masks_of_the_stand_in_say_so(fake: FakeBackend, photo: Path, tmp_path: Path) -> None:
    bundle = fake_bundle(weights="embedded")
    result = predict_image(bundle, photo, [(5, 5, 1)], out=tmp_path / "a", backend="fake")
    (note,) = result.notes
    assert "stand-in" in note and "checkpoint" in note


def test_a_dark_picture_of_sixteen_bits_says_so(fake: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    Image.fromarray(np.linspace(0, 4095, 1500).astype(np.uint16).reshape(30, 50)).save(path)
    bundle = fake_bundle(weights="sam_vit_b.pth")
    result = predict_image(bundle, path, [(5, 5, 1)], out=tmp_path / "a", backend="fake")
    (note,) = result.notes
    assert "scan.png is dark" in note and "below 4096 of 65536" in note
