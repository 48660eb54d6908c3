"""The main job at another input size: bundle, parity, lint, prediction, engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec
from structsam.models.image_size import resized
from structsam.models.load import build_sam
from structsam_export import export, open_bundle
from structsam_export.bundle.manifest import write_manifest
from structsam_export.cli.main import main
from structsam_export.graph.lint import lint
from structsam_export.parity.check import check
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import image_geometry, preprocess
from structsam_export.tune.merging_loss import LossMeter

#: The real grids; narrow and shallow.
NARROW = ModelSpec("narrow", "for tests", 32, 3, 2, global_blocks=(1,))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(MODELS, NARROW.name, NARROW)
    return NARROW.name


@pytest.mark.slow
def test_a_bundle_at_another_size(
    narrow: str, tiny_photo: Path, tmp_path: Path, one_torch_thread: None
) -> None:
    """512 pixels, `upsample`, a stage, prompt-aware: everything that may go wrong at once."""
    result = export(
        narrow, rate=0.5, placement="stage", prompt_aware="rank", weights="random",
        image_size=512, embedding="upsample", precision="fp32", backend="onnxruntime",
        images=[tiny_photo], out=tmp_path,
    )  # fmt: skip
    assert result.path.name == "narrow-512up-structsam-r0.50-stage-box_rank-fp32"
    assert result.parity, result.parity.verdict()
    bundle = open_bundle(result.path)
    assert bundle.model.to_dict()["image_size"] == 512 and bundle.preprocessing.image_size == 512
    image, outputs = bundle.part("encoder").inputs[0], bundle.part("encoder").outputs
    assert image.shape == (1, 3, 512, 512) and outputs[0].shape == (1, 256, 64, 64)
    for part in ("encoder", "decoder"):
        assert lint(bundle.onnx_path(part)) == []
    assert check(bundle, "torch")  # rebuilds the model at that size from the manifest

    photo = read_image(tiny_photo)
    with bundle.predictor("onnxruntime") as predictor:
        predictor.set_image(photo)
        masks, _, low_res = predictor.predict(box=np.array([30, 20, 70, 50]))
    assert masks.shape == (3, *photo.shape[:2]) and low_res.shape == (3, 256, 256)


def test_a_bundle_from_before_sizes_opens(own_bundle: Any) -> None:
    """Its manifest says nothing of sizes: it is at the trained one."""
    assert "image_size" not in own_bundle.manifest["model"]
    write_manifest(own_bundle.path, own_bundle.manifest)
    model = open_bundle(own_bundle.path).model
    assert (model.image_size, model.embedding, model.size_text) == (None, "native", "")


@pytest.mark.parametrize("command", ("export", "flops", "bench", "evaluate", "inspect", "tune"))
@pytest.mark.parametrize(
    ("size", "message"),
    (
        ("1000", "image size 1000 is not a multiple of 16 from 256 to 2048. "
         "Use --image-size 992 or --image-size 1008"),
        ("abc", "image size 'abc' is no whole number of pixels"),
    ),
)  # fmt: skip
def test_a_wrong_size_is_one_line_and_leaves_nothing(
    command: str,
    size: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    more = {
        "evaluate": ["--root", "."],
        "tune": ["--images", "images"],
        "bench": ["--out", "out"],
    }
    option = "--sizes" if command == "tune" else "--image-size"
    arguments = [command, "--model", "vit_t", option, size, *more.get(command, ())]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2 and message.replace("--image-size", option) in shown.err
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


def test_flops_at_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["flops", "--model", "vit_b", "--image-size", "896", "--rate", "0", "--json"])
    counted = json.loads(capsys.readouterr().out)
    assert counted["model"] == "vit_b-896"
    assert {block["tokens"] for block in counted["blocks"]} == {196, 56 * 56}


def test_a_size_for_python(narrow: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`image_size=1008`"):
        export(narrow, weights="random", image_size=1000, out=tmp_path)
    assert not list(tmp_path.iterdir())


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from((256, 512, 768, 896, 1008, 2048))
)
def test_a_photo_lies_in_the_input_as_sam_lays_it(height: int, width: int, size: int) -> None:
    """The long side is the size, each side rounded; points move with it."""
    how = resized(MODELS["vit_b"], size).preprocessing
    stock = ResizeLongestSide(size)
    wanted = stock.get_preprocess_shape(height, width, size)
    if min(wanted) < 1:
        with pytest.raises(UserError, match=f"with its long side at {size}"):
            image_geometry(height, width, how)
        return
    geometry = image_geometry(height, width, how)
    assert geometry.input_size == wanted and geometry.image_size == size
    corners = np.array([[0.0, 0.0], [width, height]])
    expected = stock.apply_coords(corners, (height, width))
    np.testing.assert_allclose(geometry.to_input(corners), expected, rtol=1e-6)


@pytest.mark.parametrize("model", ("vit_b", "medsam"))
def test_fit_and_pad_are_those_of_1024(model: str, rng: np.random.Generator) -> None:
    photo = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    pixels, geometry = preprocess(photo, resized(MODELS[model], 512).preprocessing)
    assert pixels.shape == (1, 3, 512, 512)
    if model == "medsam":  # stretched, values over the whole of [0, 1]
        assert geometry.input_size == (512, 512) and geometry.upsample_probabilities
        assert (pixels.min(), pixels.max()) == (0.0, 1.0)
        return
    sam = build_sam(resized(NARROW, 512))
    tensor = torch.from_numpy(ResizeLongestSide(512).apply_image(photo)).permute(2, 0, 1)
    assert np.array_equal(pixels, sam.preprocess(tensor[None]).numpy())
    assert geometry.input_size == (384, 512) and not pixels[..., 384:, :].any()


@pytest.mark.parametrize(("embedding", "side"), (("native", 72), ("upsample", 64)))
def test_the_loss_of_a_merging_is_measured_at_that_size(
    embedding: Any, side: int, tiny_spec: ModelSpec, tiny_photo: Path, one_torch_thread: None
) -> None:
    spec = resized(tiny_spec, 288, embedding)
    meter = LossMeter(build_sam(spec), spec)
    nothing = meter.losses(MergeConfig(rate=0.0), tiny_photo)
    assert (nothing.embedding, nothing.masks) == (0.0, 0.0)
    assert meter.losses(MergeConfig(rate=0.5), tiny_photo).total > 0
    assert meter._masks is not None and meter._masks.shape[-2:] == (side, side)
