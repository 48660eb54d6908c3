"""What only a machine with an NVIDIA GPU can tell: `python -m pytest -m gpu`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from structsam_export.bench.row import feeds_of
from structsam_export.bundle.folder import Bundle
from structsam_export.engines.build import build
from structsam_export.parity.check import check
from structsam_export.runtimes import BACKENDS, RunOptions
from structsam_export.runtimes.device_tensor import HostTensor

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


def bundle_for(name: str, precision: str, out: Path) -> Bundle:
    """A merged ViT-T with random weights, and its engines where the backend needs them."""
    if reason := BACKENDS[name].why_unavailable():
        pytest.skip(f"{name}: {reason}")
    from structsam_export import export

    bundle = export(
        "vit_t",
        rate=0.5,
        weights="random",
        precision=precision,
        backend="onnxruntime",
        out=out,
    )
    if BACKENDS[name].needs_engine:
        build(bundle, name)
    return bundle


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_the_merged_encoder_passes_parity(tmp_path: Path, name: str, precision: str) -> None:
    bundle = bundle_for(name, precision, tmp_path)
    report = check(bundle, name, require=[name])
    assert report, report.verdict()
    assert check(bundle, name, require=[name])  # again, with what the first run cached


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_masks_are_the_same_with_the_embedding_left_on_the_gpu(tmp_path: Path, name: str) -> None:
    masks_by_the_device_equal_those_by_the_host(bundle_for(name, "fp16", tmp_path), name, 1e-2)


def test_the_comparison_of_masks_runs_without_a_gpu(tiny_bundle: Bundle) -> None:
    """What the test above calls is not left to rot where no GPU is."""
    masks_by_the_device_equal_those_by_the_host(tiny_bundle, "onnxruntime", 1e-5)


def masks_by_the_device_equal_those_by_the_host(
    bundle: Bundle, name: str, tolerance: float
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    boxes = np.array([[10, 20, 300, 400], [100, 100, 700, 500], [0, 0, 799, 599]])
    with bundle.predictor(backend=name) as predictor:
        for image in (photo, photo[::-1]):
            predictor.set_image(image)
            for count in (1, 3, 1, 3, 1, 3):  # plainly, captured, and as a graph
                _, low_res = predictor.predict_low_res(box=boxes[:count])
                on_host = {n: HostTensor(array) for n, array in predictor.get_features().items()}
                encoded = replace(predictor.encoded_image, features=on_host)
                with bundle.predictor(backend=name) as by_host:
                    by_host.set_encoded_image(encoded)
                    _, expected = by_host.predict_low_res(box=boxes[:count])
                np.testing.assert_allclose(low_res, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_there_is_device_time(tmp_path: Path, name: str) -> None:
    bundle = bundle_for(name, "fp16", tmp_path)
    feeds = feeds_of(bundle.part("encoder"))
    with BACKENDS[name].runner(bundle, "encoder", RunOptions(for_timing=True)) as runner:
        for _ in range(3):
            runner.run(feeds)
            milliseconds = runner.device_ms(feeds)
            assert milliseconds is not None and milliseconds > 0
