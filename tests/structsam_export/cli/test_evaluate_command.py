"""`evaluate` and `report` as typed, on a small folder of photos and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structsam_export.cli.main import main

pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three photos with two labels each; one mask has no photo, one photo is damaged."""
    root = tmp_path / "photos"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        labels = np.zeros((60, 80), np.uint8)
        labels[10:40, 5 + 5 * number : 40] = 1
        labels[20:50, 50:75] = 2
        pixels = rng.integers(0, 80, (60, 80, 3)) + 80 * labels[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "masks" / f"{number}.png")
    Image.fromarray(labels).save(root / "masks" / "lonely.png")
    (root / "images" / "damaged.png").write_bytes(b"\x89PNG no more")
    Image.fromarray(labels).save(root / "masks" / "damaged.png")
    return root


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_results_and_report(tiny_model, photos, tmp_path, capsys):
    out = tmp_path / "results"
    command = (
        "evaluate", "--model", tiny_model, "--weights", "random", "--root", photos,
        "--methods", "structsam,tome", "--rates", "0.5,0.7", "--layers", "all", "--layers",
        "global", "--out", out, "--json",
    )  # fmt: skip
    assert run(*command) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert [entry["name"] for entry in summary["runs"]] == [
        "unmerged",
        "structsam-r0.50", "structsam-r0.70", "structsam-r0.50-global", "structsam-r0.70-global",
        "tome-r0.50", "tome-r0.50-global",
    ]  # fmt: skip
    assert "tome 0.7 is left out" in shown.err and "random weights" in shown.err
    assert summary["problems"] == {"missing partner": 1, "unreadable": 1}
    first = (out / "summary.json").read_bytes()
    assert run(*command) == 0
    assert (out / "summary.json").read_bytes() == first
    capsys.readouterr()
    assert run("report", out, "--out", tmp_path / "report", "--gallery", 2) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "structsam 0.7, global" in page and "lonely" in page
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--root is missing"),
        (["--root", "nowhere"], "nowhere"),
        (["--root", ".", "--dataset", "imagenet"], "Choose one of: folder"),
        (["--root", "photos", "--metrics", "ap"], "comes with every summary"),
        (["--root", "photos", "--metrics", "psnr"], "Choose one of: iou"),
        (["--root", "photos", "--prompt", "dot"], "Choose one of: box"),
        (["--root", "photos", "--protocol", "lvis"], "Choose one of: sam"),
        (["--root", "photos", "--rates", "2"], "outside"),
        (["--root", "photos", "--methods", "all", "--option", "cells=random"], "one method"),
        (["--root", "photos", "--boxes", "boxes.json"], "no option 'boxes'"),
        (["--root", "photos", "--strict"], "lonely"),
        (["--root", "photos", "--out", "photos"], "no folder of results"),
    ],
)
def test_mistakes_say_what_to_do(
    tiny_model, photos, monkeypatch, capsys, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", "--model", tiny_model, "--weights", "random", *arguments) == 2
    told = capsys.readouterr().err
    assert message in told[told.index("error: ") :]
    assert "Traceback" not in told


def test_a_bundle_decides_its_merging(photos, capsys):
    assert run("evaluate", "engines/some", "--root", photos, "--rates", "0.5") == 2
    assert "a bundle says what --rates would" in capsys.readouterr().err


def test_report_of_something_else(tmp_path, capsys):
    assert run("report", tmp_path) == 2
    assert "evaluation.json" in capsys.readouterr().err
