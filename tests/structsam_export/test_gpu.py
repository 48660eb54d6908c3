"""What only a machine with an NVIDIA GPU can tell: `python -m pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest

from structsam_export.engines.build import build
from structsam_export.parity.check import check
from structsam_export.runtimes import BACKENDS

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_the_merged_encoder_passes_parity(tmp_path: Path, name: str, precision: str) -> None:
    if reason := BACKENDS[name].why_unavailable():
        pytest.skip(f"{name}: {reason}")
    from structsam_export import export

    bundle = export(
        "vit_t",
        rate=0.5,
        weights="random",
        precision=precision,
        backend="onnxruntime",
        out=tmp_path,
    )
    if BACKENDS[name].needs_engine:
        build(bundle, name)
    report = check(bundle, name, require=[name])
    assert report, report.verdict()
    assert check(bundle, name, require=[name])  # again, with what the first run cached
