"""Polygraphy itself reads the files, runs the graphs, and agrees with `check`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.cli.main import main
from structsam_export.parity import check as parity_check
from structsam_export.parity.check import check
from structsam_export.parity.compare import GATES
from structsam_export.parity.polygraphy_files import save_polygraphy
from structsam_export.parity.reference import Reference, load_reference
from structsam_export.predict.preprocessing import read_photo
from tests.structsam_export.parity.test_parity import FAULTS, edit_onnx
from tests.structsam_export.polygraphy_cli import assert_fully_supported, run_with_rtx

pytest.importorskip("polygraphy", reason="pip install 'structsam[polygraphy]'")


def commands(folder: Path, runner: str = "--onnxrt") -> dict[str, list[str]]:
    """Part -> the words of the README's command for a runner of Polygraphy, without its name."""
    lines = (folder / "README.txt").read_text().splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.startswith("polygraphy run ")]
    return {Path(words[1]).stem: words for words in found if runner in words}


def judge(words: list[str], folder: Path, patch: pytest.MonkeyPatch) -> int:
    """Run a command of the README in this process, in its folder; return its exit code."""
    from polygraphy.tools import main as polygraphy

    patch.setattr(sys, "argv", ["polygraphy", *words])
    patch.chdir(folder)
    return int(polygraphy())


def test_the_files_are_what_check_feeds_and_expects(
    own_bundle: Bundle,
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    folder = tmp_path / "files"
    arguments = ["--backend", "onnxruntime", "--save-polygraphy", str(folder), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["check", str(own_bundle.path), *arguments])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["passed"]  # nothing but JSON

    def arrays(kind: str) -> dict[str, np.ndarray]:
        (file,) = (folder / kind).iterdir()
        if kind.endswith("inputs"):
            return load_json(str(file))
        ((name, (results,)),) = RunResults.load(str(file))
        assert name == "reference"
        return dict(results.items())

    np.testing.assert_array_equal(arrays("encoder-inputs")["image"], reference.photo.pixels)
    expected = arrays("encoder-outputs")
    assert set(expected) == {"image_embeddings"}  # the plan outputs are no gate
    np.testing.assert_array_equal(expected["image_embeddings"], reference.embedding)
    fed = arrays("decoder-inputs")
    specs = own_bundle.part("decoder").inputs
    assert {spec.name: spec.dtype for spec in specs} == {k: str(v.dtype) for k, v in fed.items()}
    np.testing.assert_array_equal(fed["image_embeddings"], reference.embedding)
    expected = arrays("decoder-outputs")
    np.testing.assert_array_equal(expected["low_res_masks"], reference.masks)
    np.testing.assert_array_equal(expected["iou_predictions"], reference.scores)


@pytest.fixture
def reference(tiny_bundle: Bundle) -> Reference:
    photo = tiny_bundle.path / "reference" / "scene.png"
    return load_reference(read_photo(photo, tiny_bundle.preprocessing))


def test_the_readme_has_the_manifests_tolerances_and_shapes(
    own_bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    for precision in ("fp32", "fp16"):
        own_bundle.manifest["precision"]["name"] = precision
        save_polygraphy(own_bundle, [reference] * 2, tmp_path / precision)
        assert "2 photos: scene.png, scene.png" in (tmp_path / precision / "README.txt").read_text()
    for precision, option in {
        "fp32": "--compare snr --snr-threshold image_embeddings:80",  # 20 log10 of 1e-4
        "fp16": "--compare cosine_similarity --cosine-similarity-threshold image_embeddings:0.999",
    }.items():
        text = (tmp_path / precision / "README.txt").read_text()
        assert text.count(option) == 3  # ONNX Runtime, TensorRT, TensorRT for RTX
        assert ("without_tf32" in text) is (precision == "fp32")
        for name, (_, value) in GATES[precision].items():
            assert f"{name} at most {value:g}" in text or f"{name} at least {value:g}" in text
        on_tensorrt = " ".join(commands(tmp_path / precision, "--trt")["decoder"])
        for bound, shape in {"min": "1,1,2", "opt": "1,2,2", "max": "64,16,2"}.items():
            assert f"--trt-{bound}-shapes point_coords:[{shape}]" in on_tensorrt


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        ("none", None),
        ("encoder weight 1 % off", "encoder"),
        ("decoder weight changed", "decoder"),
        ("scores changed", "decoder"),
        ("encoder gives NaN", "encoder"),
    ],
)
def test_polygraphy_agrees_with_check(
    own_bundle: Bundle,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    failing: PartName | None,
) -> None:
    if fault != "none":
        part, edit, _ = FAULTS[fault]
        assert part == failing
        edit_onnx(own_bundle, part, edit)
    bundle = open_bundle(own_bundle.path)
    report = check(bundle, "onnxruntime", save_polygraphy=tmp_path / "files")
    assert bool(report) is (failing is None)
    for part, words in commands(tmp_path / "files").items():
        code = judge(words, tmp_path / "files", monkeypatch)
        assert code == (part == failing), part


def test_only_an_own_folder_is_replaced(
    tiny_bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    for count in (2, 1):
        save_polygraphy(tiny_bundle, [reference] * count, tmp_path / "files")
    assert len(list((tmp_path / "files" / "encoder-inputs").iterdir())) == 1
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.txt").write_text("my photos")
    with pytest.raises(UserError, match="photos holds other files. Give `save_polygraphy=` a new"):
        check(tiny_bundle, "onnxruntime", save_polygraphy=tmp_path / "photos")
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["README.txt"]


def test_without_polygraphy_nothing_is_run(
    own_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*_: object) -> None:
        raise AssertionError("something was run first")

    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setattr(parity_check, "_references", ran)
    with pytest.raises(UserError, match=r"pip install 'structsam\[polygraphy\]'"):
        check(own_bundle, "onnxruntime", save_polygraphy=tmp_path / "files")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_polygraphy_finds_every_graph_supported(
    tiny_bundle_factory: Callable[..., Bundle], precision: str, part: PartName
) -> None:
    """Those of every method and form: test_every_method.py, test_attention_forms.py."""
    assert_fully_supported(tiny_bundle_factory(precision).onnx_path(part))


def test_polygraphy_builds_the_encoder_without_a_gpu(
    tiny_bundle: Bundle, reference: Reference, tmp_path: Path
) -> None:
    save_polygraphy(tiny_bundle, [reference], tmp_path / "files")
    log = run_with_rtx(
        *("convert", str(tiny_bundle.onnx_path("encoder")), "--convert-to", "trt"),
        *("--compute-capabilities", "8.9", "-o", str(tmp_path / "encoder.plan")),
        *("--trt-config-postprocess-script", f"{tmp_path / 'files' / 'gates.py'}:without_tf32"),
    )
    assert "| [STRONGLY_TYPED]" in log  # and no TF32, which Polygraphy would leave on
    assert (tmp_path / "encoder.plan").stat().st_size > 1_000_000
