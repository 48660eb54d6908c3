"""Encoded images stay on the device, each in memory of its own, until nobody holds them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import IMAGE_EMBEDDINGS
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.image_cache import ImageCache
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.runtimes.device_tensor import DeviceTensor, HostTensor
from structsam_export.runtimes.kept_tensor import KeptTensor
from tests.structsam_export.engine_bundle import put_engines
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeTensorRT
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle

SIZE = 8 * 16 * 16 * 4  # bytes of an embedding
TO_HOST, ON_DEVICE = 2, 3
BOX = (1.0, 2.0, 3.0, 4.0)


@pytest.fixture
def bundle(tmp_path: Path, backend: str, trt: FakeTensorRT) -> Bundle:
    bundle = make_sam_like_bundle(tmp_path / "bundle")
    put_engines(bundle, backend, {"encoder": b"encoder", "decoder": b"sam"})
    return bundle


@pytest.fixture
def predictor(bundle: Bundle, backend: str, request: pytest.FixtureRequest) -> Predictor:
    predictor = bundle.predictor(backend=backend)
    request.addfinalizer(predictor.close)
    return predictor


def photo(grey: int) -> np.ndarray:
    return np.full((32, 64, 3), grey, np.uint8)


def encoded(predictor: Predictor, grey: int) -> EncodedImage:
    predictor.set_image(photo(grey))
    image = predictor.encoded_image
    predictor.reset_image()
    return image


def score(predictor: Predictor, image: EncodedImage) -> float:
    predictor.set_encoded_image(image)
    _, scores, _ = predictor.predict(box=np.array(BOX), multimask_output=False)
    predictor.reset_image()
    return float(scores[0])


def embedding(image: EncodedImage) -> DeviceTensor:
    assert image.features is not None
    return image.features[IMAGE_EMBEDDINGS]


def expected(image: EncodedImage) -> float:
    """The score of the box, whose labels are 2 and 3."""
    return float(embedding(image).numpy().mean() + sum(BOX) + 5)


def test_images_take_turns_without_the_host(predictor: Predictor, cuda: FakeCuda) -> None:
    images = [encoded(predictor, grey) for grey in (20, 120, 200)]
    assert all(isinstance(embedding(image), KeptTensor) for image in images)
    assert [image.nbytes for image in images] == [SIZE] * 3
    cuda.copies.clear()
    found = [score(predictor, image) for image in images * 3]
    assert {kind for kind, size in cuda.copies if size == SIZE} == {ON_DEVICE}
    assert found == pytest.approx([expected(image) for image in images * 3])
    assert len(set(found)) == 3
    if predictor.backend.name == "tensorrt":  # the decoder's serves all images
        assert cuda.calls.count("cudaStreamBeginCapture") == 2


def test_a_copy_is_complete_before_its_source_is_written_again(
    predictor: Predictor, cuda: FakeCuda
) -> None:
    predictor.set_image(photo(120))
    cuda.calls.clear()
    image = predictor.encoded_image
    assert isinstance(embedding(image), KeptTensor)
    copied = cuda.calls.index("cudaMemcpyAsync")
    assert "cudaStreamSynchronize" in cuda.calls[copied:]


def test_they_outlive_the_networks_and_leave_with_the_last_reference(
    predictor: Predictor, cuda: FakeCuda
) -> None:
    image = encoded(predictor, 120)
    before = score(predictor, image)
    predictor.close()
    assert expected(image) == pytest.approx(before)
    assert len(cuda.alive) == 1
    del image
    assert not cuda.alive


def test_the_cache_frees_what_it_evicts_and_spills_it_over_the_host(
    predictor: Predictor, cuda: FakeCuda, tmp_path: Path
) -> None:
    cache = ImageCache(2 * SIZE, tmp_path / "spilled", 1 << 20)
    for _ in range(3):  # until all graphs are captured
        score(predictor, encoded(predictor, 0))
    scores, before = [], len(cuda.alive)
    for number in range(5):
        image = encoded(predictor, 40 * number)
        scores.append(score(predictor, image))
        cache.put(f"{number:032x}", image)
        del image
    assert (len(cache), cache.bytes, len(cuda.alive) - before) == (2, 2 * SIZE, 2)
    assert sorted(len(file.stem) for file in (tmp_path / "spilled").iterdir()) == [32] * 3
    for number in range(5):  # three come back from the disk
        again = cache.get(f"{number:032x}")
        assert again is not None
        assert score(predictor, again) == pytest.approx(scores[number])
    del again
    cache.clear()
    assert (len(cache), cache.bytes, len(cuda.alive)) == (0, 0, before)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync"])
def test_on_a_full_device_the_host_keeps_them(
    predictor: Predictor, cuda: FakeCuda, call: str
) -> None:
    predictor.set_image(photo(120))
    alive = len(cuda.alive)
    cuda.fail_once[call] = 0
    image = predictor.encoded_image
    assert isinstance(embedding(image), HostTensor) and len(cuda.alive) == alive
    assert score(predictor, image) == pytest.approx(expected(image))


def test_a_server_keeps_them_there_and_leaves_nothing(
    bundle: Bundle, backend: str, cuda: FakeCuda
) -> None:
    pytest.importorskip("prometheus_client", reason="needs the extra `serve`")
    from structsam_export.serve.service import Service

    service = Service(bundle, backend)
    try:
        service.cache.max_bytes = 2 * SIZE
        for grey in (20, 120, 200):
            buffer = io.BytesIO()
            Image.fromarray(photo(grey)).save(buffer, "PNG")
            added = service.add(buffer.getvalue()).result(60)
            image = service.image(added.image_id)
            assert isinstance(embedding(image), KeptTensor)
            found = service.masks(added.image_id, AskedPrompts((), (BOX,), False), False).result(60)
            assert found.scores[0, 0] == pytest.approx(expected(image))
        assert len(service.cache) == 2
        del image
    finally:
        service.stop()
    assert not cuda.alive
