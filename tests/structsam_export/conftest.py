"""A bundle of a tiny SAM, exported once for all tests; copy it before damaging it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from structsam.models import MODELS, ModelSpec
from structsam_export.bundle.folder import Bundle, open_bundle


@dataclass(frozen=True)
class Exported:
    """What one real export left. `stdout` is what it printed there: nothing, one hopes."""

    path: Path
    report: Any
    stdout: str
    steps: tuple[str, ...]


@pytest.fixture(scope="session")
def tiny_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth scene with two objects, wider than high, so that padding is at the bottom."""
    rows, columns = np.mgrid[:96, :128]
    pixels = np.stack([columns, rows, (rows + columns) // 2], -1).astype(np.uint8)
    pixels[20:50, 30:70] = (230, 40, 30)
    pixels[60:80, 90:110] = (20, 60, 240)
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def calibration_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen small scenes, each of one bright box on a slope, and a file that is no photo."""
    folder, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :64]
    for index in range(16):
        slopes = np.stack([columns * rng.uniform(1, 4) + rows * rng.uniform(0, 2)] * 3, -1)
        pixels = (slopes + rng.uniform(0, 40, 3)).clip(0, 255).astype(np.uint8)
        top, left = rng.integers(4, 24, 2)
        pixels[top : top + 16, left : left + 24] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / "LICENSE.txt").write_text("no photo")
    return folder


@pytest.fixture
def tiny_model(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which `MODELS` knows the tiny SAM during a test."""
    monkeypatch.setitem(MODELS, tiny_spec.name, tiny_spec)
    return tiny_spec.name


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """Tiny tensors: threads only wait for each other, ten times longer on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_export_factory(
    one_torch_thread: None,
    tiny_spec: ModelSpec,
    tiny_photo: Path,
    calibration_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Exported]:
    """`make(precision)`: the one real export of that precision, rate 0.5, seed 0.

    Those of INT8 take the graphs that they quantise from the others.
    """
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers of this run

    @functools.cache
    def make(precision: str = "fp32") -> Exported:
        kept = root / f"exported-{precision}.pickle"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                exported = export_to(root / f"exported-{precision}", precision)
                kept.write_bytes(pickle.dumps(exported))
            return pickle.loads(kept.read_bytes())

    def export_to(folder: Path, precision: str) -> Exported:
        from structsam_export import export

        steps: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, tiny_spec.name, tiny_spec)
            more = {}
            if precision.startswith("int8"):
                take_graphs(patch, opened, "EncoderModule", "DecoderModule")
                more["calibrate"] = calibration_folder
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                result = export(
                    tiny_spec.name,
                    rate=0.5,
                    weights="random",
                    precision=precision,
                    backend="onnxruntime",
                    images=[tiny_photo],
                    out=folder,
                    say=steps.append,
                    **more,
                )
        return Exported(result.path, result.parity, stdout.getvalue(), tuple(steps))

    def opened(precision: str = "fp32") -> Bundle:
        return open_bundle(make(precision).path, verify=False)

    return make


@pytest.fixture(scope="session")
def tiny_bundle_factory(tiny_export_factory: Callable[[str], Exported]) -> Callable[..., Bundle]:
    """`make(precision="fp32")`: the shared bundle of that precision. Read only."""
    return lambda precision="fp32": open_bundle(tiny_export_factory(precision).path, verify=False)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_factory: Callable[..., Bundle]) -> Bundle:
    """The shared FP32 bundle. Read only."""
    return tiny_bundle_factory()


@pytest.fixture
def own_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the FP32 bundle that a test may damage."""
    folder = tmp_path / "copy"
    # without what OpenVINO compiled for predictors of other tests
    shutil.copytree(tiny_bundle.path, folder, ignore=shutil.ignore_patterns("openvino"))
    shutil.rmtree(folder / "engines", ignore_errors=True)
    return open_bundle(folder, verify=False)


def take_graphs(patch: pytest.MonkeyPatch, bundle_of: Callable[..., Bundle], *kinds: str) -> None:
    """Take the graphs of modules of these classes from the shared bundle instead of tracing.

    The bundle holds the weights of its own export: with any other, parity fails.
    """
    import onnx_ir as ir

    from structsam_export.graph import exporter as onnx_graph

    trace = onnx_graph._to_ir
    bundle_of()  # now: a test may patch the exporter

    def traced_before(module: Any, inputs: Any, part: Any, names: Any, *more: Any) -> Any:
        if type(module).__name__ not in kinds:
            return trace(module, inputs, part, names, *more)
        with pytest.MonkeyPatch.context() as as_it_was:  # the bundle may have to be made now
            as_it_was.setattr(onnx_graph, "_to_ir", trace)
            bundle = bundle_of("fp16" if module.half_inside else "fp32")
        model = ir.load(bundle.path / part.file)
        model.metadata_props.clear()  # the exporter says it anew
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in names]
        return model

    patch.setattr(onnx_graph, "_to_ir", traced_before)


@pytest.fixture
def fast_graphs(
    tiny_bundle_factory: Callable[..., Bundle], tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Let an export of the tiny SAM (rate 0.5, seed 0) take its graphs from the shared bundle.

    Tracing is most of the time of an export; everything around it still runs.
    """
    take_graphs(monkeypatch, tiny_bundle_factory, "EncoderModule", "DecoderModule")
    return tiny_model


@pytest.fixture
def fast_decoder(
    tiny_bundle_factory: Callable[..., Bundle], tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Trace only the encoder of the tiny SAM: no way of merging changes the decoder."""
    take_graphs(monkeypatch, tiny_bundle_factory, "DecoderModule")
    return tiny_model
