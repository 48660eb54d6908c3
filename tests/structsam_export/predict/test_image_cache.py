"""Which images stay in memory, which go to disk and come back, and which are gone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.image_cache import ImageCache
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.runtimes.cuda_memory import CudaError
from structsam_export.runtimes.device_tensor import HostTensor

IDS = [f"{number:032x}" for number in range(6)]


def image(number: int, size: int = 25) -> EncodedImage:
    """Of 4 * size bytes."""
    embedding = np.full((1, size), number, np.float32)
    place = ImageGeometry((30, 50 + number), (38, 64), 64)
    return EncodedImage(place, {"image_embeddings": HostTensor(embedding)})


def filled(cache: ImageCache, count: int) -> ImageCache:
    for number in range(count):
        cache.put(IDS[number], image(number))
    return cache


def test_the_least_recently_used_leave_first() -> None:
    evicted: list[int] = []
    cache = filled(ImageCache(300, on_evict=evicted.append), 3)
    assert (len(cache), cache.bytes, evicted) == (3, 300, [])
    cache.get(IDS[0])
    cache.put(IDS[3], image(3))
    assert [cache.get(name) is not None for name in IDS[:4]] == [True, False, True, True]
    assert (cache.bytes, evicted) == (300, [1])


def test_an_image_larger_than_the_cache_is_kept_until_the_next() -> None:
    cache = ImageCache(10)
    cache.put(IDS[0], image(0))
    assert cache.get(IDS[0]) is not None
    cache.put(IDS[1], image(1))
    assert cache.get(IDS[0]) is None and cache.get(IDS[1]) is not None


def test_put_twice_it_counts_once() -> None:
    cache = ImageCache(1000)
    for _ in range(3):
        cache.put(IDS[0], image(0))
    assert (len(cache), cache.bytes) == (1, 100)
    assert cache.remove(IDS[0]) and not cache.remove(IDS[0])
    assert (len(cache), cache.bytes) == (0, 0)


def test_what_leaves_memory_comes_back_from_disk(tmp_path: Path) -> None:
    cache = filled(ImageCache(200, tmp_path, 10**6), 4)
    assert sorted(file.stem for file in tmp_path.glob("*.npz")) == IDS[:2]
    found = cache.get(IDS[0])
    assert found is not None and found.features is not None
    assert np.array_equal(
        found.features["image_embeddings"].numpy(), np.full((1, 25), 0, np.float32)
    )
    assert found.geometry == image(0).geometry
    assert cache.bytes == 200
    again = ImageCache(200, tmp_path, 10**6)  # after a restart
    assert again.get(IDS[1]) is not None
    assert again.remove(IDS[1]) and again.get(IDS[1]) is None


def test_the_disk_is_bounded_too(tmp_path: Path) -> None:
    cache = ImageCache(100, tmp_path, 10**6)
    cache.put(IDS[0], image(0))
    cache.put(IDS[1], image(1))
    (first,) = tmp_path.glob("*.npz")
    os.utime(first, (1, 1))
    cache.max_spill_bytes = int(1.5 * first.stat().st_size)
    cache.put(IDS[2], image(2))
    assert [file.stem for file in tmp_path.glob("*.npz")] == [IDS[1]]


def test_a_damaged_file_is_no_image(tmp_path: Path) -> None:
    cache = filled(ImageCache(100, tmp_path, 10**6), 3)
    file = tmp_path / f"{IDS[0]}.npz"
    for content in (b"", b"no zip", file.read_bytes()[:200]):
        file.write_bytes(content)
        assert cache.get(IDS[0]) is None
        assert not file.exists()


def test_a_name_that_leaves_the_folder_is_none(tmp_path: Path) -> None:
    outside = tmp_path / "secret.npz"
    outside.write_bytes(b"")
    spill = tmp_path / "spill"
    spill.mkdir()  # without it no path would lead through it
    cache = ImageCache(100, spill, 10**6)
    assert cache.get("../secret") is None and not cache.remove("../secret")
    assert outside.exists()


def test_a_full_disk_loses_speed_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = filled(ImageCache(200, tmp_path, 10**6), 4)
    assert cache.get(IDS[0]) is None and cache.get(IDS[3]) is not None
    assert not list(tmp_path.iterdir())


def test_a_device_that_gives_nothing_loses_speed_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(_: HostTensor) -> np.ndarray:
        raise CudaError("cudaHostAlloc", CudaError.OUT_OF_MEMORY, "out of memory")

    monkeypatch.setattr(HostTensor, "numpy", out_of_memory)
    cache = filled(ImageCache(200, tmp_path, 10**6), 3)
    assert (cache.bytes, cache.get(IDS[0])) == (200, None) and cache.get(IDS[2]) is not None
    assert not list(tmp_path.iterdir())


def test_a_prompt_aware_image_survives_its_file() -> None:
    place = ImageGeometry((30, 50), (64, 64), 64, upsample_probabilities=True)
    kept = EncodedImage(place, None, np.ones((1, 3, 64, 64), np.float32))
    again = EncodedImage.from_arrays(kept.to_arrays())
    assert again.geometry == place and again.features is None
    assert np.array_equal(again.network_input, kept.network_input)
    assert again.nbytes == kept.nbytes == 4 * 3 * 64 * 64
