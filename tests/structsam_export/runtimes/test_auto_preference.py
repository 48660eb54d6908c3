"""What `auto` takes on a CPU: OpenVINO where it was faster, and can run the bundle."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from structsam_export import machine
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import BACKENDS, find_backend
from structsam_export.runtimes.auto_preference import auto_order
from structsam_export.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from structsam_export.runtimes.openvino_backend import OpenVinoBackend
from tests.structsam_export.small_bundle import make_bundle

XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
ATOM = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2\n"
EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "bundle")


def on(text: str, monkeypatch: pytest.MonkeyPatch, installed: bool = True) -> None:
    """Pretend to be on that CPU, with both runtimes, or without OpenVINO, and no GPU."""
    monkeypatch.setattr(machine, "_lines", lambda file: text.splitlines())
    missing = None if installed else "openvino is not installed"
    monkeypatch.setattr(OpenVinoBackend, "why_unavailable", lambda self: missing)
    monkeypatch.setattr(
        OnnxRuntimeBackend,
        "why_unavailable",
        lambda self: None if self.name == "onnxruntime" else "no GPU",
    )


@pytest.mark.parametrize(
    ("cpu", "first"),
    [
        pytest.param(XEON, "openvino", id="Intel, AVX-512"),
        pytest.param(ATOM, "onnxruntime", id="Intel without"),
        pytest.param(EPYC, "onnxruntime", id="AMD"),
        pytest.param(ARM, "onnxruntime", id="ARM"),
        pytest.param("", "onnxruntime", id="no /proc"),
    ],
)
def test_openvino_comes_first_where_it_was_faster(
    cpu: str, first: str, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    on(cpu, monkeypatch)
    assert find_backend("auto").name == find_backend("auto", bundle).name == first
    order = auto_order(BACKENDS)
    assert sorted(order) == sorted(BACKENDS)
    assert order.index("onnxruntime-cuda") < order.index(first), "a GPU comes before any CPU"


def test_without_openvino_it_is_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    on(XEON, monkeypatch, installed=False)
    assert find_backend("auto", bundle).name == "onnxruntime"


def test_a_bundle_that_openvino_refuses_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    on(XEON, monkeypatch)
    bundle.manifest["precision"]["name"] = "int8"
    assert find_backend("auto", bundle).name == "onnxruntime"
    bundle.manifest["precision"]["name"] = "int8-fp32"
    assert find_backend("auto", bundle).name == "openvino"


def test_the_kind_of_this_cpu() -> None:
    vendor, instructions = machine.cpu_kind()
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert vendor and {"fpu", "sse2"} <= instructions
    else:
        assert not instructions
