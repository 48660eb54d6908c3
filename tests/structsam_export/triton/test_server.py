"""A real Triton server serves the repositories; the masks are those of `predict`."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.prediction import Prediction, predict_image
from structsam_export.triton.repository import write_repository
from structsam_export.triton.settings import TritonSettings
from tests.structsam_export.triton.bundles import batched_bundle, prompt_aware_bundle
from tests.structsam_export.triton.server import Server, environment, serving, with_stand_ins

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BOXES = ((30.0, 20.0, 70.0, 50.0), (88.0, 58.0, 112.0, 82.0))
POINT = (50.0, 35.0, 1)


@dataclass
class Served:
    """The server, the bundles behind the names of its models, and answers to the calls below."""

    server: Server
    bundles: dict[str, Bundle]
    repository: Path
    answers: dict[str, Any]
    encoded: dict[str, int]


def bytes_of(*contents: bytes) -> np.ndarray:
    return np.array(contents, dtype=object)


def turned(photo: Path) -> bytes:
    """The photo as a JPEG that says it lies on its side."""
    stream = io.BytesIO()
    with Image.open(photo) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def calls(photo: Path) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    content = bytes_of(photo.read_bytes())
    boxes = np.array(BOXES, np.float32)
    point, label = np.array([POINT[:2]], np.float32), np.array([1], np.int32)
    two = np.array([1, 1], np.int32)
    masks = "tiny_masks"
    return {
        "boxes": (masks, {"photo": content, "boxes": boxes}),
        "point": (masks, {"photo": content, "points": point, "labels": label}),
        "all masks": (masks, {"photo": content, "points": point, "multimask": np.array([True])}),
        "box and point": (
            masks,
            {
                "photo": content,
                "boxes": boxes[:1],
                "points": np.array([[60, 40], [100, 70]], np.float32),
                "labels": np.array([1, 0], np.int32),
            },
        ),
        "turned": (masks, {"photo": bytes_of(turned(photo)), "boxes": boxes[:1] / 2}),
        "aware": ("aware_masks", {"photo": content, "boxes": boxes}),
        "batched": ("batched_masks", {"photo": content, "boxes": boxes}),
        "embedding": ("tiny_embedding", {"photo": content}),
        "no photo": (masks, {"photo": bytes_of(b"no photo"), "boxes": boxes}),
        "two photos": (masks, {"photo": bytes_of(b"a", b"b"), "boxes": boxes}),
        "no prompt": (masks, {"photo": content}),
        "outside": (masks, {"photo": content, "points": np.array([[128, 5]], np.float32)}),
        "labels": (
            masks,
            {"photo": content, "points": point, "labels": two},
        ),
        "many boxes": (masks, {"photo": content, "points": point, "boxes": boxes}),
        "flat box": (masks, {"photo": content, "boxes": boxes[0]}),
    }


@pytest.fixture(scope="module")
def served(
    tiny_bundle: Bundle, tiny_photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder, root = environment(), tmp_path_factory.mktemp("triton")
    bundles = {
        "tiny": tiny_bundle,
        "aware": prompt_aware_bundle(root / "aware"),
        "batched": batched_bundle(root / "batched", 4),
    }
    models = root / "models"
    models.mkdir()
    for name, bundle in bundles.items():
        settings = TritonSettings(name, "onnxruntime", workers=1)
        made = write_repository(bundle, root / f"{name}-repository", settings)
        for model in with_stand_ins(made.path, root / f"{name}-served").iterdir():
            shutil.move(model, models / model.name)  # files beside the models as well
    with serving(folder, models, root / "log") as server:
        sent = calls(tiny_photo)
        before = {name: server.inferences(f"{name}_encoder") for name in bundles}  # warm-up
        answers = dict(zip(sent, server.infer(list(sent.values())), strict=True))
        encoded = {n: server.inferences(f"{n}_encoder") - count for n, count in before.items()}
        yield Served(server, bundles, root / "tiny-repository", answers, encoded)


def predicted(served: Served, photo: Path, out: Path, **prompts: Any) -> Prediction:
    return predict_image(
        served.bundles["tiny"], photo, out=out, backend="onnxruntime", overlay=False, **prompts
    )


def agrees(answer: Any, prediction: Prediction) -> None:
    assert not isinstance(answer, str), answer
    masks = answer["masks"].reshape(-1, *answer["masks"].shape[-2:])
    assert masks.dtype == bool and len(masks) == len(prediction.masks)
    for mask, file in zip(masks, prediction.masks, strict=True):
        other = np.asarray(Image.open(file)) > 0
        assert (mask & other).sum() >= 0.999 * (mask | other).sum()
    assert masks.any()
    scores = [m["score"] for p in prediction.details["prompts"] for m in p["masks"]]
    np.testing.assert_allclose(answer["scores"].reshape(-1), scores, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "prompts"),
    [
        ("boxes", {"boxes": BOXES}),
        ("point", {"points": [POINT]}),
        ("all masks", {"points": [POINT], "all_masks": True}),
        ("box and point", {"boxes": BOXES[:1], "points": [(60, 40, 1), (100, 70, 0)]}),
    ],
)
def test_masks_are_those_of_predict(
    served: Served, tiny_photo: Path, tmp_path: Path, call: str, prompts: dict[str, Any]
) -> None:
    agrees(served.answers[call], predicted(served, tiny_photo, tmp_path / "out", **prompts))


def test_a_photo_on_its_side_is_upright(served: Served, tiny_photo: Path, tmp_path: Path) -> None:
    photo = tmp_path / "turned.jpg"
    photo.write_bytes(turned(tiny_photo))
    assert served.answers["turned"]["masks"].shape == (1, 1, 128, 96)
    box = tuple(value / 2 for value in BOXES[0])
    agrees(served.answers["turned"], predicted(served, photo, tmp_path / "out", boxes=[box]))


@pytest.mark.parametrize("name", ["aware", "batched"])
def test_other_encoders(served: Served, tiny_photo: Path, name: str) -> None:
    """One encodes for every box; one takes four photos a call, whatever comes."""
    bundle = served.bundles[name] if name == "aware" else None
    if bundle is None:
        from tests.structsam_export.sam_like_bundle import make_sam_like_bundle

        bundle = make_sam_like_bundle(served.repository.parent / "single")
    with bundle.predictor("onnxruntime") as predictor:
        predictor.set_image(np.asarray(Image.open(tiny_photo).convert("RGB")))
        masks, scores, _ = predictor.predict(box=np.array(BOXES), multimask_output=False)
    np.testing.assert_array_equal(served.answers[name]["masks"], masks)
    np.testing.assert_allclose(served.answers[name]["scores"], scores, rtol=1e-3)


def test_a_photo_is_encoded_once(served: Served) -> None:
    """Two photos were masked, one of them four times; the ensemble ran besides."""
    assert served.encoded["tiny"] == 3
    assert served.encoded["aware"] == len(BOXES)  # it must encode for every box


def test_the_ensemble_gives_the_embedding(served: Served, tiny_photo: Path) -> None:
    found = served.answers["embedding"]
    with served.bundles["tiny"].predictor("onnxruntime") as predictor:
        predictor.set_image(np.asarray(Image.open(tiny_photo).convert("RGB")))
        expected, geometry = predictor.get_image_embedding(), predictor.geometry
    np.testing.assert_allclose(found["image_embeddings"], expected, atol=1e-4)
    assert geometry and tuple(found["original_size"]) == geometry.original_size == (96, 128)
    assert tuple(found["input_size"]) == geometry.input_size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("no photo", "photo is not an image"),
        ("two photos", "unexpected shape for input 'photo'"),
        ("no prompt", "no prompt. Send `points`"),
        ("outside", "point (128, 5) is outside the image of 128 x 96 pixels"),
        ("labels", "2 labels for 1 points"),
        ("many boxes", "1 points with 2 boxes"),
        ("flat box", "unexpected shape for input 'boxes'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(served: Served, call: str, message: str) -> None:
    answer = served.answers[call]
    assert isinstance(answer, str) and message in answer and "\n" not in answer, answer


def test_photos_that_wait_share_a_call(served: Served) -> None:
    rng = np.random.default_rng(0)
    photos = rng.normal(size=(8, 1, 3, 64, 64)).astype(np.float32)
    before = served.server.executions("batched_encoder_batch")
    found = served.server.infer(
        [("batched_encoder", {"image": photo}) for photo in photos], at_once=True
    )
    calls = served.server.executions("batched_encoder_batch") - before
    assert 2 <= calls < 8
    (all_at_once,) = served.server.infer(
        [("batched_encoder", {"image": np.concatenate(photos[:4])})]
    )
    assert served.server.executions("batched_encoder_batch") == before + calls + 1
    for index, answer in enumerate(found[:4]):
        expected = all_at_once["image_embeddings"][index : index + 1]
        np.testing.assert_array_equal(answer["image_embeddings"], expected)


def test_the_client_of_the_readme(served: Served, tiny_photo: Path, tmp_path: Path) -> None:
    script = (served.repository / "client.py").read_text()
    script = script.replace("localhost:8001", served.server.address)
    box = ",".join(f"{value:g}" for value in BOXES[0])
    told = served.server.run_script(
        script, str(tiny_photo), "masks.npz", "--box", box, cwd=tmp_path
    )
    expected = served.answers["boxes"]["masks"][0, 0]
    assert told.startswith(f"{expected.sum()} pixels, score ")
    with np.load(tmp_path / "masks.npz") as saved:
        np.testing.assert_array_equal(saved["masks"][0, 0], expected)
