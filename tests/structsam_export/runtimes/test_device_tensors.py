"""The encoder's output is the decoder's input where it lies; nobody copies it unasked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.predictor import Predictor
from structsam_export.runtimes import BACKENDS, RunOptions
from structsam_export.runtimes.base import Runner
from structsam_export.runtimes.device_buffers import BufferTensor
from structsam_export.runtimes.device_tensor import HostTensor
from structsam_export.runtimes.onnxruntime_backend import OrtTensor
from tests.structsam_export.engine_bundle import put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_onnxruntime import FakeOnnxRuntime
from tests.structsam_export.fake_tensorrt import FakeTensorRT
from tests.structsam_export.sam_like_bundle import DECODER, LOW, make_sam_like_bundle

HEIGHT, WIDTH = 32, 64  # of the photo: pixels are those of the 64 x 64 input
BRIGHT, DARK = (np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (200, 20))
TO_DEVICE, TO_HOST = 1, 2
EMBEDDING_BYTES = 8 * 16 * 16 * 4


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_sam_like_bundle(tmp_path / "bundle")


@pytest.fixture
def predictor(
    bundle: Bundle, backend: str, trt: FakeTensorRT, request: pytest.FixtureRequest
) -> Predictor:
    put_engines(bundle, backend, {"encoder": b"encoder", "decoder": b"sam"})
    predictor = bundle.predictor(backend=backend)
    request.addfinalizer(predictor.close)
    return predictor


def prompt(embedding: np.ndarray, count: int = 1) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of the decoder, and the scores that it should give."""
    coords = np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2)
    feeds = {
        "image_embeddings": embedding,
        "point_coords": coords,
        "point_labels": np.ones((count, 2), np.float32),
        "mask_input": np.zeros((count, 1, LOW, LOW), np.float32),
        "has_mask_input": np.zeros(count, np.float32),
    }
    scores = coords.sum((1, 2)) + 2 + embedding.mean()
    return feeds, np.repeat(scores[:, None], 4, 1)


def score_of_a_box(predictor: Predictor) -> float:
    """The score of the box [1, 2, 3, 4], whose labels are 2 and 3."""
    _, scores, _ = predictor.predict(box=np.array([1, 2, 3, 4]), multimask_output=False)
    return float(scores[0])


def test_the_embedding_stays_on_the_gpu(predictor: Predictor, cuda: FakeCuda) -> None:
    predictor.open()
    predictor.set_image(BRIGHT)
    assert [kind for kind, _ in cuda.copies] == [TO_DEVICE]
    cuda.copies.clear()
    score = score_of_a_box(predictor)
    assert EMBEDDING_BYTES not in [size for _, size in cuda.copies]
    embedding = predictor.get_image_embedding()
    assert cuda.copies[-1] == (TO_HOST, EMBEDDING_BYTES)
    assert score == pytest.approx(embedding.mean() + 10 + 5) and embedding.mean() != 0


def test_graphs_see_the_embedding_of_the_current_image(
    predictor: Predictor, cuda: FakeCuda
) -> None:
    found = []
    for image in (BRIGHT, DARK, BRIGHT):
        predictor.set_image(image)
        (score,) = {score_of_a_box(predictor) for _ in range(3)}
        assert score == pytest.approx(predictor.get_image_embedding().mean() + 15)
        found.append(score)
    assert found[0] == found[2] != found[1]
    if predictor.backend.name == "tensorrt":
        assert cuda.calls.count("cudaStreamBeginCapture") == 2, "encoder once, decoder once"


def test_a_network_that_was_opened_again_has_other_addresses(
    predictor: Predictor, cuda: FakeCuda
) -> None:
    for image in (BRIGHT, DARK):
        with predictor:
            predictor.set_image(image)
            for _ in range(3):
                expected = pytest.approx(predictor.get_image_embedding().mean() + 15)
                assert score_of_a_box(predictor) == expected
        assert not cuda.alive


def test_arrays_and_tensors_take_turns(
    predictor: Predictor, bundle: Bundle, backend: str, cuda: FakeCuda
) -> None:
    image = np.ones((1, 3, 64, 64), np.float32)
    with (
        BACKENDS[backend].runner(bundle, "encoder", RunOptions()) as encoder,
        BACKENDS[backend].runner(bundle, "decoder", RunOptions()) as decoder,
    ):
        for turn in range(1, 5):
            there = encoder.run_on_device({"image": image * turn})["image_embeddings"]
            other = np.full((1, 8, 16, 16), turn, np.float32)
            for embedding in (there, other, HostTensor(other), there):
                values = embedding if isinstance(embedding, np.ndarray) else embedding.numpy()
                feeds, expected = prompt(values, count=2)
                found = decoder.run({**feeds, "image_embeddings": embedding})
                np.testing.assert_allclose(found["iou_predictions"], expected)
        there = encoder.run_on_device({"image": image})["image_embeddings"]
        encoder.run({"image": image})
        with pytest.raises(RuntimeError, match="image_embeddings is gone: its network ran again"):
            decoder.run({**feeds, "image_embeddings": there})
        there = encoder.run_on_device({"image": image})["image_embeddings"]
        assert isinstance(there, BufferTensor) and there.dtype == np.float32
        encoder.close()
        with pytest.raises(RuntimeError, match="is gone"):
            there.numpy()
    assert not cuda.alive


def check_without_copies(
    encoder: Runner, decoder: Runner, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hand an embedding over while `numpy` fails, and compare with the way over the host."""
    image = {"image": np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)}
    there = encoder.run_on_device(image)["image_embeddings"]
    assert isinstance(there, kind) and there.shape == (1, 8, 16, 16)
    np.testing.assert_array_equal(there.numpy(), encoder.run(image)["image_embeddings"])
    feeds, expected = prompt(there.numpy(), count=3)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "numpy", lambda tensor: pytest.fail("it was copied"))
        handed = decoder.run_on_device({**feeds, "image_embeddings": there})
    np.testing.assert_allclose(handed["iou_predictions"].numpy(), expected, rtol=1e-6)
    for name, array in decoder.run(feeds).items():
        np.testing.assert_array_equal(handed[name].numpy(), array)
    first = decoder.run(feeds)["iou_predictions"]
    for _ in range(3):
        decoder.run({**feeds, "point_coords": feeds["point_coords"] + 100})
    np.testing.assert_allclose(first, expected, rtol=1e-6)


def test_onnxruntime_hands_over_its_own_values(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    with (
        BACKENDS["onnxruntime"].runner(bundle, "encoder", RunOptions()) as encoder,
        BACKENDS["onnxruntime"].runner(bundle, "decoder", RunOptions()) as decoder,
    ):
        check_without_copies(encoder, decoder, OrtTensor, monkeypatch)


def test_onnxruntime_cuda_keeps_the_embedding_on_cuda(
    bundle: Bundle, ort: FakeOnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bundle.predictor(backend="onnxruntime-cuda") as predictor:
        predictor.set_image(BRIGHT)
        assert ort.bound == [("image_embeddings", "cuda")]
        score = score_of_a_box(predictor)
        assert ort.bound[1:] == [("low_res_masks", "cpu"), ("iou_predictions", "cpu")]
        embedding = predictor.get_image_embedding()
    assert score == pytest.approx(embedding.mean() + 15)


def test_onnxruntime_on_the_cpu_fetches_what_lies_on_cuda(
    bundle: Bundle, ort: FakeOnnxRuntime
) -> None:
    image = {"image": np.ones((1, 3, 64, 64), np.float32)}
    with (
        BACKENDS["onnxruntime-cuda"].runner(bundle, "encoder", RunOptions()) as encoder,
        BACKENDS["onnxruntime"].runner(bundle, "decoder", RunOptions()) as decoder,
    ):
        there = encoder.run_on_device(image)["image_embeddings"]
        feeds, expected = prompt(there.numpy())
        found = decoder.run({**feeds, "image_embeddings": there})
    np.testing.assert_allclose(found["iou_predictions"], expected, rtol=1e-6)


def test_torch_hands_over_its_tensors(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from structsam_export.runtimes.torch_backend import TorchRunner, TorchTensor

    class Formula(TorchRunner):
        """The same small networks, without a SAM."""

        def open(self) -> None:
            pass

        def _function(self, with_plans: bool) -> Any:
            return self.encode if self._name == "encoder" else self.decode

        def encode(self, image: Any) -> Any:
            return torch.nn.functional.pixel_unshuffle(image, 4)[:, :8]

        def decode(self, embedding: Any, *prompt: Any) -> Sequence[Any]:
            coords, labels, mask, has = prompt
            scores = coords.sum((1, 2)) + labels.sum(1) + embedding.mean()
            scores = scores[:, None].expand(-1, 4)
            return scores[..., None, None] + mask + has[:, None, None, None], scores

    def load() -> Any:
        raise AssertionError

    encoder = Formula(bundle.part("encoder"), "encoder", load, "fp32")
    decoder = Formula(DECODER, "decoder", load, "fp32")
    check_without_copies(encoder, decoder, TorchTensor, monkeypatch)
