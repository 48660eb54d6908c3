"""A SAM that is no model here, from its TOML file or its checkpoint to masks with a verdict."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from structsam.models.find_model import find_model
from structsam.models.load import build_sam
from structsam.models.spec_file import read_spec
from structsam_export import open_bundle
from structsam_export.bundle.folder import Bundle
from structsam_export.cli.main import main
from structsam_export.graph.lint import lint
from structsam_export.parity.check import check
from structsam_export.predict.image_file import read_image

ROOT = Path(__file__).resolve().parents[2]

#: Patches of 14 pixels, and 10 tokens a side in windows of 4: padded to 12.
ODD = """
name = "odd14"
width = 32
depth = 2
heads = 2
global_blocks = [1]
window = 4
patch = 14
image_size = 140
channels = 64
decoder = { depth = 1, heads = 4, mlp = 64, score = 32 }
[preprocessing]
mean = [120, 110, 100]
std = [60, 60, 60]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "odd.toml"
    path.write_text(ODD)
    return path


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    import torch

    path = model.with_name("odd.pth")
    torch.save({"state_dict": build_sam(read_spec(model), seed=4).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def exported(model: Path, checkpoint: Path, one_torch_thread: None, tiny_photo: Path) -> Bundle:
    """By the command line, and the file is gone afterwards."""
    words = ["export", "--model", model, "--checkpoint", checkpoint, "--precision", "fp32"]
    words += ["--backend", "onnxruntime", "--image", tiny_photo, "--out", model.parent, "--json"]
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert not ended.value.code
    moved = model.with_suffix(".gone")
    shutil.move(model, moved)
    return open_bundle(model.parent / "odd14-structsam-r0.50-fp32")


def test_the_bundle_tells_its_geometry_itself(exported: Bundle) -> None:
    assert exported.parity_verdict is not None and exported.parity_verdict.passed
    spec = exported.model.spec
    assert (spec.name, spec.patch_size, spec.grid, spec.window_sizes) == (
        "odd14",
        14,
        (10, 10),
        (4, 0),
    )
    assert spec.preprocessing == exported.preprocessing
    assert exported.preprocessing.mean == (120.0, 110.0, 100.0)
    (embedding,) = exported.part("encoder").outputs
    assert embedding.shape == (1, 64, 10, 10)
    for part in exported.parts:
        assert lint(exported.onnx_path(part)) == []


def test_torch_rebuilds_it_without_the_file(
    exported: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    from structsam_export.runtimes import RunOptions

    shutil.copytree(exported.path, tmp_path / "copy")
    own = open_bundle(tmp_path / "copy")
    assert check(own, "torch", options=RunOptions(checkpoint=checkpoint))


def test_it_draws_masks_as_large_as_the_photo(exported: Bundle, tiny_photo: Path) -> None:
    photo = read_image(tiny_photo)
    with exported.predictor("onnxruntime", threads=1) as predictor:
        predictor.set_image(photo)
        masks, _, low_res = predictor.predict(box=np.array([30, 20, 70, 50]))
    assert masks.shape == (3, *photo.shape[:2]) and low_res.shape == (3, 40, 40)


def test_tensorrt_for_rtx_builds_it(exported: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    from structsam_export.engines.build import build

    shutil.copytree(exported.path, tmp_path / "copy")
    entries = build(open_bundle(tmp_path / "copy"), "tensorrt-rtx", targets=["sm89"])
    assert [entry.part for entry in entries] == ["encoder", "decoder"]


def test_auto_derives_the_same_geometry(exported: Bundle, checkpoint: Path) -> None:
    """But what no shape tells: the heads of its decoder, and its normalisation."""
    spec, told = find_model("auto", checkpoint)
    assert told.startswith(
        "odd.pth holds a SAM that is no model here: 32 wide, 2 blocks (1 global, the others in "
        "windows of 4), 2 heads, patches of 14 on 140 pixels, its decoder's heads taken as 8, "
        "which no shape tells, segment-anything names"
    )
    described = exported.model.spec
    assert spec.decoder is not None and described.decoder is not None
    assert spec.decoder == replace(described.decoder, num_heads=8)
    alike = {
        name: getattr(described, name)
        for name in ("name", "title", "weights_note", "decoder", "preprocessing")
    }
    assert replace(spec, **alike) == described


def test_the_file_in_the_docs_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.S)
    (tmp_path / "sam14.toml").write_text(text)
    spec = read_spec(tmp_path / "sam14.toml")
    assert (spec.grid, spec.patch_size, spec.preprocessing.name) == ((72, 72), 14, "sam14")
