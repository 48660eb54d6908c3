"""Engines for the small bundle that `FakeTensorRT` runs, and what the decoder answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import pytest

from structsam_export.bundle.engine_entries import engine_file, fingerprint, record_engine
from structsam_export.bundle.folder import Bundle
from tests.structsam_export.fake_cuda import FakeCuda
from tests.structsam_export.fake_tensorrt import FakeTensorRT

FEEDS = {
    "point_coords": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
    "point_labels": np.ones((3, 2), np.float32),
}
EXPECTED = np.repeat(np.array([[8.0], [24.0], [40.0]], np.float32), 4, axis=1)
CONTENT = {"encoder": b"encoder", "decoder": b"decoder"}


def install(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, rtx: bool) -> FakeTensorRT:
    fake = FakeTensorRT(cuda, rtx)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", fake)  # type: ignore[arg-type]
    return fake


def put_engines(bundle: Bundle, backend: str, content: Mapping[str, bytes] = CONTENT) -> None:
    version, gpu = ("1.7.1", None) if backend == "tensorrt-rtx" else ("10.3.0", "Pretended GPU")
    (bundle.path / "engines").mkdir(exist_ok=True)
    for part in ("encoder", "decoder"):
        (bundle.path / engine_file(backend, part, "sm89")).write_bytes(content[part])
        wanted = fingerprint(bundle, backend, part, "sm89", version, gpu)
        record_engine(bundle, backend, part, "sm89", wanted, 1.0, {})
