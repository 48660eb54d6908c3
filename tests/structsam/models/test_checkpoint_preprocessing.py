"""Preprocessing that the folder of a checkpoint states: as transformers' processor applies it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec, model_spec
from structsam.models.checkpoint_preprocessing import preprocessing_note, with_its_preprocessing
from structsam.models.find_model import find_model
from structsam_export.predict.preprocessing import preprocess

NESTED, ALONE = "processor_config.json", "preprocessor_config.json"


def stated(folder: Path, file: str = ALONE, **values: Any) -> Path:
    whole = {"image_processor": values} if file == NESTED else values
    (folder / file).write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("as_whole", [False, True], ids=["image processor", "processor"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [100.0, 90.0, 80.0], "image_std": [50.0, 40.0, 30.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ],
    ids=["SAM's", "own mean", "0 to 1", "0 to 255", "-1 to 1"],
)
def test_the_same_input_as_transformers_processor(
    tiny_spec: ModelSpec, tmp_path: Path, own: dict[str, Any], as_whole: bool
) -> None:
    """A photo as wide as the input: what is compared is not how two libraries resize."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    side = tiny_spec.image_size
    processor = transformers.SamImageProcessor(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}, **own
    )
    (transformers.SamProcessor(processor) if as_whole else processor).save_pretrained(tmp_path)
    assert (tmp_path / (NESTED if as_whole else ALONE)).is_file()
    spec = with_its_preprocessing(tiny_spec, tmp_path)
    assert (spec == tiny_spec) == (not own)
    photo = np.random.default_rng(0).integers(0, 256, (side // 2, side, 3), np.uint8)
    expected = processor(photo, return_tensors="np")["pixel_values"]
    found, geometry = preprocess(photo, spec.preprocessing)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert geometry.input_size == (side // 2, side)


def test_what_differs_is_said(tmp_path: Path) -> None:
    folder = stated(tmp_path, image_mean=[0.5] * 3, image_std=0.25, resample=3)
    spec = with_its_preprocessing(model_spec("vit_b"), folder)
    assert preprocessing_note(spec) == (
        ", normalised by mean 127.5/127.5/127.5, std 63.75/63.75/63.75, resized bicubic"
    )
    assert spec.preprocessing.name == "checkpoint" and spec.name == "vit_b"
    assert preprocessing_note(model_spec("vit_b")) == ""
    assert preprocessing_note(model_spec("medsam")) == (
        ", scaled to 0..1, stretched to a square, resized bicubic"
    )


def test_a_model_with_its_own_preprocessing_keeps_it(tmp_path: Path) -> None:
    """Folders of MedSAM state SAM's processor, which MedSAM was not trained with."""
    folder = stated(tmp_path, image_mean=[0.5] * 3)
    assert with_its_preprocessing(model_spec("medsam"), folder) is MODELS["medsam"]


@pytest.mark.parametrize("own", [True, False], ids=["stated", "left out"])
def test_a_model_files_preprocessing_goes_first_even_where_it_is_sams(
    tmp_path: Path, own: bool
) -> None:
    folder = stated(tmp_path, image_mean=[0.5] * 3)
    text = "width = 768\ndepth = 12\nheads = 12\nglobal_blocks = [2, 5, 8, 11]\n"
    if own:
        text += "[preprocessing]\nmean = [123.675, 116.28, 103.53]\n"
    (tmp_path / "mine.toml").write_text(text)
    spec, _ = find_model(str(tmp_path / "mine.toml"), folder)
    assert spec.preprocessing.mean == ((123.675, 116.28, 103.53) if own else (127.5,) * 3)


def test_a_file_and_a_folder_without_a_processor_state_nothing(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    for checkpoint in (None, file, tmp_path, tmp_path / "absent"):
        assert with_its_preprocessing(MODELS["vit_b"], checkpoint) is MODELS["vit_b"]


def test_the_whole_processors_file_goes_first(tmp_path: Path) -> None:
    """As in transformers, which reads the older file where the newer has no image processor."""
    stated(tmp_path, ALONE, image_mean=[0.1] * 3)
    stated(tmp_path, NESTED, image_mean=[0.2] * 3)
    how = with_its_preprocessing(MODELS["vit_b"], tmp_path).preprocessing
    assert how.mean == (51.0,) * 3
    (tmp_path / NESTED).write_text('{"processor_class": "SamProcessor"}')
    how = with_its_preprocessing(MODELS["vit_b"], tmp_path).preprocessing
    assert how.mean == (25.5,) * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resample": 0}, "resample 0, expected 2 (bilinear) or 3 (bicubic)"),
        ({"resample": [2]}, "resample [2]"),
        ({"resample": True}, "resample True"),
        ({"do_pad": False}, "do_pad False, expected true"),
        ({"do_resize": False}, "do_resize False, expected true"),
        ({"do_center_crop": True}, "do_center_crop True, expected false"),
        ({"pad_size": {"height": 512, "width": 1024}}, "pad_size {'height': 512, 'width': 1024}"),
        ({"size": {"longest_edge": 512}}, "expected a longest_edge of 1024"),
        ({"size": {"height": 1024, "width": 1024}}, "size {'height': 1024, 'width': 1024}"),
        ({"image_processor_type": "ViTImageProcessor"}, "expected SamImageProcessor"),
        ({"image_processor_type": 3}, "image_processor_type 3"),
        ({"image_mean": [0.5, 0.5]}, "image_mean [0.5, 0.5], expected three numbers"),
        ({"image_mean": "grey"}, "image_mean 'grey'"),
        ({"image_mean": [0.5, 0.5, True]}, "image_mean [0.5, 0.5, True]"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std [0.5, 0, 0.5], expected numbers above 0"),
        ({"image_std": 1e-10}, "image_std 1e-10, expected numbers above 0"),
        ({"rescale_factor": 0}, "rescale_factor 0, expected a number above 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor nan"),
        ({"image_std": [float("inf")] * 3}, "expected three numbers"),
    ],
)
def test_what_cannot_be_done_here_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    for file in (ALONE, NESTED):
        stated(tmp_path, file, **values)
        with pytest.raises(UserError) as caught:
            with_its_preprocessing(MODELS["vit_b"], tmp_path)
        assert message in str(caught.value) and file in str(caught.value)
        assert "\n" not in str(caught.value)
        (tmp_path / file).unlink()


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, ""])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ALONE).write_text(text)
    with pytest.raises(UserError, match=ALONE):
        with_its_preprocessing(MODELS["vit_b"], tmp_path)


def test_a_model_at_another_size_keeps_the_normalisation(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    from structsam.models.image_size import resized

    spec = with_its_preprocessing(tiny_spec, stated(tmp_path, image_mean=[0.5] * 3))
    small = resized(replace(spec, image_size=1024), 512).preprocessing
    assert (small.image_size, small.mean) == (512, (127.5,) * 3)
