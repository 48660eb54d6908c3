"""A real Triton server serves the repositories; the masks are those of `predict`."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.prediction import Prediction, predict_image
from structsam_export.triton.repository import write_repository
from structsam_export.triton.settings import TritonSettings

pytest.importorskip("onnx")

from tests.structsam_export.sam_like_bundle import make_sam_like_bundle
from tests.structsam_export.triton.bundles import batched_bundle, prompt_aware_bundle
from tests.structsam_export.triton.server import Server, environment, serving, with_stand_ins

BOXES = ((30.0, 20.0, 70.0, 50.0), (88.0, 58.0, 112.0, 82.0))
POINT = (50.0, 35.0, 1)


@dataclass(frozen=True)
class Recorded:
    """What a server answered.

    Args:
        answers: to `calls`, by their names; an error is its text.
        encoded: how often each encoder answered for them.
        alone, together: eight photos sent at once, and four of them as one request.
        runs: of the encoder of fixed batch, for the eight, and for the four.
        client: what the client of the README printed, and the masks that it saved.
    """

    answers: dict[str, Any]
    encoded: dict[str, int]
    alone: list[np.ndarray]
    together: np.ndarray
    runs: tuple[int, int]
    client: tuple[str, np.ndarray]


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
def recorded(
    tiny_bundle: Bundle, tiny_photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    """One server for all workers of a run; it takes seconds to start."""
    pytest.importorskip("onnxruntime")
    folder, root = environment(), tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    kept = root / "triton-answers.pickle"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(record(folder, root / "triton", tiny_bundle, tiny_photo)))
    found = pickle.loads(kept.read_bytes())
    assert isinstance(found, Recorded)
    return found


def record(folder: Path, root: Path, tiny_bundle: Bundle, photo: Path) -> Recorded:
    models = root / "models"
    models.mkdir(parents=True)
    bundles = {
        "tiny": tiny_bundle,
        "aware": prompt_aware_bundle(root / "aware"),
        "batched": batched_bundle(root / "batched", 4),
    }
    for name, bundle in bundles.items():
        settings = TritonSettings(name, "onnxruntime", workers=1)
        made = write_repository(bundle, root / f"{name}-repository", settings)
        for model in with_stand_ins(made.path, root / f"{name}-served").iterdir():
            shutil.move(model, models / model.name)  # files beside the models as well
    with serving(folder, models, root / "log") as server:
        sent = calls(photo)
        before = {name: server.inferences(f"{name}_encoder") for name in bundles}  # warm-up
        answers = dict(zip(sent, server.infer(list(sent.values())), strict=True))
        encoded = {n: server.inferences(f"{n}_encoder") - count for n, count in before.items()}
        return Recorded(answers, encoded, *batches(server), client(server, root, photo))


def batches(server: Server) -> tuple[list[np.ndarray], np.ndarray, tuple[int, int]]:
    """Send eight photos at once, then four as one request; return embeddings, and the runs."""
    inputs = np.random.default_rng(0).normal(size=(8, 1, 3, 64, 64)).astype(np.float32)
    start = server.executions("batched_encoder_batch")
    found = server.infer([("batched_encoder", {"image": image}) for image in inputs], at_once=True)
    middle = server.executions("batched_encoder_batch")
    (four,) = server.infer([("batched_encoder", {"image": np.concatenate(inputs[:4])})])
    end = server.executions("batched_encoder_batch")
    alone = [answer["image_embeddings"] for answer in found]
    return alone, four["image_embeddings"], (middle - start, end - middle)


def client(server: Server, root: Path, photo: Path) -> tuple[str, np.ndarray]:
    """Run the client that lies in the repository; return what it prints and saves."""
    script = (root / "tiny-repository" / "client.py").read_text()
    script = script.replace("localhost:8001", server.address)
    box = ",".join(f"{value:g}" for value in BOXES[0])
    told = server.run_script(script, str(photo), "masks.npz", "--box", box, cwd=root)
    with np.load(root / "masks.npz") as saved:
        return told, saved["masks"]


def predicted(bundle: Bundle, photo: Path, out: Path, **prompts: Any) -> Prediction:
    return predict_image(bundle, photo, out=out, backend="onnxruntime", overlay=False, **prompts)


def agrees(answer: Any, prediction: Prediction) -> None:
    assert not isinstance(answer, str), answer
    masks = answer["masks"].reshape(-1, *answer["masks"].shape[-2:])
    assert masks.dtype == bool and len(masks) == len(prediction.masks) and masks.any()
    for mask, file in zip(masks, prediction.masks, strict=True):
        other = np.asarray(Image.open(file)) > 0
        assert (mask & other).sum() >= 0.999 * (mask | other).sum()
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
    recorded: Recorded,
    tiny_bundle: Bundle,
    tiny_photo: Path,
    tmp_path: Path,
    call: str,
    prompts: dict[str, Any],
) -> None:
    prediction = predicted(tiny_bundle, tiny_photo, tmp_path / "out", **prompts)
    agrees(recorded.answers[call], prediction)


def test_a_photo_on_its_side_is_upright(
    recorded: Recorded, tiny_bundle: Bundle, tiny_photo: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "turned.jpg"
    photo.write_bytes(turned(tiny_photo))
    assert recorded.answers["turned"]["masks"].shape == (1, 1, 128, 96)
    box = tuple(value / 2 for value in BOXES[0])
    prediction = predicted(tiny_bundle, photo, tmp_path / "out", boxes=[box])
    agrees(recorded.answers["turned"], prediction)


@pytest.mark.parametrize(
    ("name", "make"), [("aware", prompt_aware_bundle), ("batched", make_sam_like_bundle)]
)
def test_other_encoders(
    recorded: Recorded, tiny_photo: Path, tmp_path: Path, name: str, make: Any
) -> None:
    """One encodes for every box; one takes four photos a call, whatever comes."""
    with make(tmp_path / "bundle").predictor("onnxruntime") as predictor:
        predictor.set_image(np.asarray(Image.open(tiny_photo).convert("RGB")))
        masks, scores, _ = predictor.predict(box=np.array(BOXES), multimask_output=False)
    np.testing.assert_array_equal(recorded.answers[name]["masks"], masks)
    np.testing.assert_allclose(recorded.answers[name]["scores"], scores, rtol=1e-3)


def test_a_photo_is_encoded_once(recorded: Recorded) -> None:
    """Two photos were masked, one of them four times; the ensemble ran besides."""
    assert recorded.encoded["tiny"] == 3
    assert recorded.encoded["aware"] == len(BOXES)  # it must encode for every box


def test_the_ensemble_gives_the_embedding(
    recorded: Recorded, tiny_bundle: Bundle, tiny_photo: Path
) -> None:
    found = recorded.answers["embedding"]
    with tiny_bundle.predictor("onnxruntime") as predictor:
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
def test_a_mistake_is_answered_in_one_line(recorded: Recorded, call: str, message: str) -> None:
    answer = recorded.answers[call]
    assert isinstance(answer, str) and message in answer and "\n" not in answer, answer


def test_photos_that_wait_share_a_call(recorded: Recorded) -> None:
    eight, four = recorded.runs
    assert 2 <= eight < 8 and four == 1
    assert len(recorded.together) == 4
    for alone, together in zip(recorded.alone, recorded.together, strict=False):
        np.testing.assert_array_equal(alone[0], together)


def test_the_client_of_the_readme(recorded: Recorded) -> None:
    told, masks = recorded.client
    expected = recorded.answers["boxes"]["masks"][0, 0]
    assert told.startswith(f"{expected.sum()} pixels, score ")
    np.testing.assert_array_equal(masks[0, 0], expected)
