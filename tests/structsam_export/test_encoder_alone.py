"""A model that is an image encoder alone: exported, checked, built and timed; `predict` refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.models import ModelSpec
from structsam_export import export, open_bundle
from structsam_export.bundle.folder import Bundle
from structsam_export.cli.main import main
from structsam_export.graph.lint import lint
from structsam_export.parity.check import check
from structsam_export.parity.compare import compare, keeps_gates
from structsam_export.parity.reference import load_reference, no_masks
from structsam_export.predict.preprocessing import read_photo

#: Cellpose-SAM's kind: small patches, all blocks global, no decoder.
TILES = ModelSpec(
    "tiles", "", 32, 2, 2, (0, 1), image_size=64, patch_size=8, decoder=None, stretch_positions=True
)


@pytest.fixture(scope="module")
def exported(
    one_torch_thread: None, tiny_photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return export(
        TILES,
        rate=0.5,
        weights="random",
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=tmp_path_factory.mktemp("alone"),
    )


@pytest.fixture
def own(exported: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(exported.path, tmp_path / "copy")
    return open_bundle(tmp_path / "copy")


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return int(ended.value.code or 0)


def test_it_has_one_network_which_keeps_the_rules(exported: Bundle) -> None:
    assert exported.parts == ("encoder",)
    assert sorted(file.name for file in exported.path.glob("*.onnx")) == ["encoder.onnx"]
    assert lint(exported.onnx_path("encoder")) == []
    (embedding,) = exported.part("encoder").outputs
    assert embedding.shape == (1, 256, 8, 8)
    assert exported.model.spec == replace(
        TILES, weights_note=exported.model.spec.weights_note, title="tiles"
    )


def test_parity_is_that_of_the_embedding(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(own, "onnxruntime")
    assert report.verdict() == ("parity passed (fp32); of the embedding: the model has no decoder")
    (row,) = report.rows
    assert set(row.metrics) == {"cosine", "relative_l2", "max_abs", "same_slot"}
    assert row.metrics["same_slot"] == 1.0
    facts = json.loads((own.path / "parity.json").read_text())
    assert set(facts["gates"]) == {"relative_l2"}
    assert "no decoder" in (own.path / "parity.html").read_text()


def test_an_embedding_that_is_off_fails(own: Bundle) -> None:
    how = own.preprocessing
    (photo,) = (read_photo(own.file(name), how) for name in own.manifest["reference_images"])
    reference = load_reference(photo)
    for size, good in ((0.0, True), (1e-5, True), (1e-3, False), (np.nan, False)):
        features = {name: (1 + size) * array for name, array in reference.features.items()}
        metrics, _ = compare(reference, features, *no_masks(), None)
        assert keeps_gates(metrics, "fp32") == good


def test_check_bench_and_flops_take_it(own: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", own.path, "--backend", "onnxruntime", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["status"] == "passed"
    assert run("bench", own.path, "--backend", "onnxruntime", "--runs", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["part"] for row in rows] == ["encoder"] and rows[0]["median_ms"] > 0
    assert run("flops", own.path, "--json") == 0


@pytest.mark.parametrize("command", ["predict", "everything"])
def test_what_draws_masks_refuses(
    own: Bundle, tiny_photo: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, own.path, tiny_photo, "--backend", "onnxruntime") == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "has no decoder: its model, tiles, is an image encoder alone" in said
    assert not (tiny_photo.parent / "scene-masks").exists()


def test_int8_and_evaluate_need_masks(tmp_path: Path, calibration_folder: Path) -> None:
    from structsam_export.bundle.weights_source import ModelSource
    from structsam_export.evaluate.runs import model_runs

    with pytest.raises(UserError, match="tiles is an image encoder without a mask decoder"):
        export(
            TILES,
            weights="random",
            precision="int8-fp32",
            calibrate=calibration_folder,
            out=tmp_path,
        )
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="and `evaluate` judges masks"):
        model_runs(ModelSource(TILES, weights="random"), [], "fp32", None)


def test_tensorrt_for_rtx_builds_it(own: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    from structsam_export.engines.build import build

    (entry,) = build(own, "tensorrt-rtx", targets=["sm89"])
    assert entry.part == "encoder"


def test_polygraphy_gets_the_encoders_tensors(own: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    check(own, "onnxruntime", save_polygraphy=tmp_path / "poly")
    folders = {path.name for path in (tmp_path / "poly").iterdir() if path.is_dir()}
    assert folders == {"encoder-inputs", "encoder-outputs"}
    assert "decoder.onnx" not in (tmp_path / "poly" / "README.txt").read_text()


def test_cellposes_own_file_becomes_a_bundle(
    one_torch_thread: None, tiny_photo: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cellpose.vit", reason="needs `pip install --no-deps cellpose`")
    import torch

    import structsam
    from tests.structsam.test_cellpose import cellpose_model

    model = cellpose_model()
    model.save_model(tmp_path / "cpsam")
    said: list[str] = []
    bundle: Any = export(
        "auto",
        rate=0.5,
        checkpoint=tmp_path / "cpsam",
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=tmp_path,
        say=said.append,
    )
    assert bundle.parity, bundle.parity.verdict()
    assert any("Cellpose names" in line for line in said)
    photo = read_photo(tiny_photo, bundle.preprocessing)
    structsam.apply_merging(model, rate=0.5)
    with torch.inference_mode():
        expected = model.encoder(torch.from_numpy(photo.pixels)).numpy()
    from structsam_export.runtimes import RunOptions, find_backend

    with find_backend("onnxruntime").runner(bundle, "encoder", RunOptions(threads=1)) as runner:
        found = runner.run({"image": photo.pixels}, ["image_embeddings"])["image_embeddings"]
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    from structsam_export.engines.build import build

    assert [entry.part for entry in build(bundle, "tensorrt-rtx", targets=["sm89"])] == ["encoder"]
