"""SAM-HQ from a checkpoint to masks: equal to its authors' predictor, and what red looks like."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import structsam
from structsam.errors import UserError
from structsam.models import MODELS, DecoderSpec, ModelSpec
from structsam.models.load import build_sam
from structsam_export import export
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.parity.check import check
from structsam_export.parity.compare import ParityReport
from structsam_export.predict.embedding_file import load_embedding, save_embedding, to_half
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.image_file import read_image
from structsam_export.predict.predictor import Predictor
from structsam_export.runtimes.torch_backend import InMemoryBackend
from tests.structsam.models.hq_reference import reference_package, reference_sam
from tests.structsam_export.parity.test_parity import change_weight, edit_onnx
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle

PROMPTS: tuple[dict[str, Any], ...] = (
    {"point_coords": np.array([[64, 48]]), "point_labels": np.array([1])},
    {"box": np.array([20, 10, 100, 80])},
)


@pytest.fixture(scope="module")
def spec(tiny_spec: ModelSpec) -> ModelSpec:
    """Two global blocks: the early features are those of the first."""
    return replace(tiny_spec, name="tiny_hq", decoder=DecoderSpec(hq=True), global_blocks=(0, 2))


@pytest.fixture(scope="module", autouse=True)
def with_tiny_hq(spec: ModelSpec, one_torch_thread: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, spec.name, spec)
        yield


@pytest.fixture(scope="module")
def checkpoint(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hq") / "sam_hq_tiny.pth"
    torch.save(build_sam(spec).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tiny_photo: Path) -> tuple[Bundle, ParityReport, list[str]]:
    """The checkpoint as a bundle at rate 0.5, FP32; its report; what was said."""
    pytest.importorskip("onnxruntime")
    said: list[str] = []
    bundle = export(
        "auto",
        rate=0.5,
        checkpoint=checkpoint,
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=checkpoint.parent,
        say=said.append,
    )
    return bundle, bundle.parity, said


@pytest.fixture(scope="module")
def bundle(exported: tuple[Bundle, ParityReport, list[str]]) -> Bundle:
    return exported[0]


@pytest.fixture(scope="module")
def predictor(bundle: Bundle, tiny_photo: Path) -> Iterator[Predictor]:
    with bundle.predictor("onnxruntime", threads=1) as predictor:
        predictor.set_image(read_image(tiny_photo))
        yield predictor


def in_memory(sam: Any, spec: ModelSpec) -> Predictor:
    backend = InMemoryBackend(sam)
    return Predictor(backend.in_memory_bundle(spec.preprocessing), backend)


def test_a_checkpoint_becomes_a_bundle_that_passes_parity(
    exported: tuple[Bundle, ParityReport, list[str]],
) -> None:
    bundle, report, said = exported
    assert report, report.verdict()
    assert any(line.startswith("sam_hq_tiny.pth holds tiny_hq, SAM-HQ,") for line in said)
    assert bundle.name == "tiny_hq-structsam-r0.50-fp32" and bundle.is_hq
    shapes = [(spec.name, spec.shape) for spec in bundle.features]
    assert shapes == [("image_embeddings", (1, 256, 16, 16)), ("hq_features", (1, 32, 64, 64))]
    assert bundle.part("encoder").plan_outputs
    assert [spec.name for spec in bundle.part("decoder").outputs][-1] == "hq_masks"
    (row,) = report.rows
    assert row.metrics["masks_judged"] == 25 * 5


def test_masks_are_those_of_the_authors_predictor(
    spec: ModelSpec, predictor: Predictor, tiny_photo: Path
) -> None:
    """Unmerged in PyTorch, and merged: their model merged in place beside our ONNX."""
    theirs = reference_sam(spec)
    image, package = read_image(tiny_photo), reference_package()
    ours = in_memory(build_sam(spec), spec)
    ours.set_image(image)
    for own, rate in ((ours, 0.0), (predictor, 0.5)):
        if rate:
            structsam.apply_merging(theirs, rate=rate)
        reference = package.SamPredictor(theirs)
        reference.set_image(image)
        for prompt in PROMPTS:
            for multimask in (False, True):
                for only in (False, True):
                    asked = {
                        **prompt, "multimask_output": multimask, "hq_token_only": only,
                        "return_logits": True,
                    }  # fmt: skip
                    found, expected = own.predict(**asked), reference.predict(**asked)
                    for mine, other in zip(found, expected, strict=True):
                        assert mine.shape == other.shape
                        assert np.abs(mine - other).max() <= 1e-4 * np.abs(other).max()


def test_the_hq_token_alone_is_another_mask(predictor: Predictor, bundle: Bundle) -> None:
    both = predictor.predict(**PROMPTS[1], return_logits=True)[0]
    alone = predictor.predict(**PROMPTS[1], return_logits=True, hq_token_only=True)[0]
    assert np.abs(both - alone).max() > 0.1 * np.abs(both).max()
    chosen = bundle.predictor("onnxruntime", threads=1, hq_token_only=True)
    chosen.set_encoded_image(predictor.encoded_image)
    assert np.array_equal(chosen.predict(**PROMPTS[1], return_logits=True)[0], alone)
    chosen.close()


def test_another_model_has_no_hq_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no SAM-HQ, and has no HQ token"):
        make_sam_like_bundle(tmp_path).predictor("onnxruntime", hq_token_only=True)


def test_everything_is_as_the_authors_generator(spec: ModelSpec, tiny_photo: Path) -> None:
    theirs, image = reference_sam(spec), read_image(tiny_photo)
    low = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    expected = reference_package().SamAutomaticMaskGenerator(theirs, **low).generate(image)
    found = in_memory(build_sam(spec), spec).everything(image, **low)
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        assert mine["point_coords"] == other["point_coords"]
        assert mine["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)
        assert (mine["segmentation"] != other["segmentation"]).mean() < 1e-3


FAULTS: dict[str, Any] = {
    "HQ features 1 % off": (
        "encoder", "hq.of_early.3.weight", lambda weight: 1.01 * weight, "relative_l2",
    ),
    "HQ token ignored": (
        "decoder", "decoder.hf_mlp.layers.2.weight", lambda weight: 0 * weight, "mean_mask_iou",
    ),
    "mask features of another channel": (
        "decoder", "decoder.embedding_maskfeature.3.weight", lambda weight: weight[::-1],
        "mean_mask_iou",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_sam_has_not_fails_parity(
    bundle: Bundle, tmp_path: Path, fault: str
) -> None:
    part, weight, change, gate = FAULTS[fault]
    shutil.copytree(bundle.path, tmp_path / "copy")
    own = open_bundle(tmp_path / "copy", verify=False)
    edit_onnx(own, part, change_weight(weight, change))
    report = check(own, "onnxruntime")
    assert not report and gate in report.verdict()


def test_saved_feature_maps_give_the_same_masks(
    bundle: Bundle, predictor: Predictor, tmp_path: Path
) -> None:
    size, features = (96, 128), predictor.get_features()
    assert list(features) == ["image_embeddings", "hq_features"]
    file = tmp_path / "scene.png.npz"
    save_embedding(file, bundle, to_half(features), size, "0" * 32)
    loaded, found_size = load_embedding(file, bundle)
    assert found_size == size and loaded.keys() == features.keys()
    with bundle.predictor("onnxruntime", threads=1) as again:
        again.set_features(loaded, size)
        found = again.predict(**PROMPTS[1], return_logits=True)[2]
        with pytest.raises(UserError, match="image_embeddings, .* takes hq_features, image_emb"):
            again.set_embedding(features["image_embeddings"], size)
    expected = predictor.predict(**PROMPTS[1], return_logits=True)[2]
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()  # FP16
    with pytest.raises(UserError, match="another encoder"):
        load_embedding(file, make_sam_like_bundle(tmp_path / "other"))
    too_large = features | {"hq_features": 1e6 * features["hq_features"]}
    with pytest.raises(UserError, match="hq_features has values beyond FP16"):
        to_half(too_large)


def test_the_server_finds_saved_feature_maps(
    bundle: Bundle, predictor: Predictor, tmp_path: Path
) -> None:
    from structsam_export.serve.saved_embeddings import SavedEmbeddings

    features = to_half(predictor.get_features())
    save_embedding(tmp_path / "scene.png.npz", bundle, features, (96, 128), "0" * 32)
    found = SavedEmbeddings(tmp_path, bundle).find("0" * 32)
    assert found is not None and found.features is not None
    for name, map_ in found.features.items():
        assert np.array_equal(map_.numpy(), features[name].astype(np.float32))
    assert found.features.keys() == features.keys()


def test_a_kept_image_holds_both(predictor: Predictor) -> None:
    kept = predictor.encoded_image
    assert kept.nbytes == 4 * (256 * 16 * 16 + 32 * 64 * 64)
    again = EncodedImage.from_arrays(kept.to_arrays())
    assert again.features is not None and kept.features is not None
    for name, map_ in kept.features.items():
        assert np.array_equal(again.features[name].numpy(), map_.numpy())


def test_the_server_keeps_both_and_adds_the_masks(
    bundle: Bundle, predictor: Predictor, tiny_photo: Path
) -> None:
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from structsam_export.serve.app import make_app
    from structsam_export.serve.service import Service

    service = Service(bundle, "onnxruntime", threads=1, hq_token_only=True)
    with TestClient(make_app(service)) as client:
        posted = client.post("/v1/images", content=tiny_photo.read_bytes()).json()
        maps = [
            client.get(f"/v1/images/{posted['id']}/embedding", params={"feature": name})
            for name in predictor.get_features()
        ]
        assert [r.headers["X-Shape"] for r in maps] == ["1,256,16,16", "1,32,64,64"]
        asked = {"boxes": [[20, 10, 100, 80]], "format": "png"}
        (mask,) = client.post(f"/v1/images/{posted['id']}/masks", json=asked).json()["masks"]
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["data"])))) > 0
    expected = predictor.predict(**PROMPTS[1], multimask_output=False, hq_token_only=True)[0][0]
    assert np.array_equal(found, expected)


def test_a_prompt_box_and_another_input_size(spec: ModelSpec, tiny_photo: Path) -> None:
    """Both feature maps belong to the box, and are made for the size."""
    from structsam.models.image_size import resized

    at_size = resized(spec, 320, "upsample")
    sam = structsam.apply_merging(build_sam(at_size), rate=0.5, prompt_aware="rank")
    predictor = in_memory(sam, at_size)
    predictor.set_image(read_image(tiny_photo))
    found = []
    for box in ([5, 5, 40, 40], [60, 30, 120, 90]):
        masks, _, _ = predictor.predict(box=np.array(box))
        assert masks.shape == (1, 96, 128)
        found.append(predictor.get_features()["hq_features"])
    assert found[0].shape == (1, 32, 64, 64) and not np.array_equal(*found)


def test_fp16_is_near(spec: ModelSpec, tiny_photo: Path) -> None:
    """Both feature maps and the masks, in PyTorch with FP16 as it is typed in the graphs."""
    sam, found = build_sam(spec), []
    for precision in ("fp32", "fp16"):
        backend = InMemoryBackend(sam, precision)
        predictor = Predictor(backend.in_memory_bundle(spec.preprocessing), backend)
        predictor.set_image(read_image(tiny_photo))
        masks = predictor.predict(**PROMPTS[1], return_logits=True)[2]
        found.append([*predictor.get_features().values(), masks])
    for exact, half in zip(*found, strict=True):
        error = np.linalg.norm(exact - half) / np.linalg.norm(exact)
        assert 0 < error < 1e-2 and half.dtype == np.float32


def test_it_builds_for_rtx(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    from structsam_export.engines.build import build

    shutil.copytree(bundle.path, tmp_path / "copy")
    own = open_bundle(tmp_path / "copy", verify=False)
    entries = build(own, "tensorrt-rtx", targets=["sm89"])
    assert [entry.part for entry in entries] == ["encoder", "decoder"]


def test_openvino_passes(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    shutil.copytree(bundle.path, tmp_path / "copy")
    report = check(open_bundle(tmp_path / "copy", verify=False), "openvino")
    assert report, report.verdict()
