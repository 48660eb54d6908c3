"""A search on a tiny SAM: what it measures, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import structsam
from structsam.apply import apply_merging
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.mask_iou import mask_iou
from structsam.models import MODELS, ModelSpec
from structsam_export.bundle.folder import open_bundle
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.cli.main import main
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess
from structsam_export.runtimes import RunOptions
from structsam_export.tune import latency, merging_loss
from structsam_export.tune import on_this_machine as module
from structsam_export.tune.mask_loss import FIXED_BOXES, MaskJudge, ModelAtSize
from structsam_export.tune.merging_loss import LossMeter
from structsam_export.tune.points import Point
from structsam_export.tune.recipe import read_recipe
from structsam_export.tune.report import facts, frontier_table, save_report, verdict
from structsam_export.tune.search import Limit
from structsam_export.tune.tune import Levers, find_photos, tune

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_torch_thread")
LEVERS = Levers(sizes=(256,), placements=("attention",), rates=(0.5,), int8=False, per_block=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of blobs."""
    rng = np.random.default_rng(0)
    out = tmp_path_factory.mktemp("photos")
    for number in range(4):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        image.save(out / f"photo, {number}.png")
    return out


@pytest.fixture
def model(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny SAM of 288 pixels, so that 256 is a smaller input."""
    side = 288
    how = replace(tiny_spec.preprocessing, image_size=side)
    spec = replace(tiny_spec, name="larger", image_size=side, preprocessing=how)
    monkeypatch.setitem(MODELS, spec.name, spec)
    return spec.name


def found(model: str, folder: Path, out: Path, levers: Levers = LEVERS, **more: Any) -> Any:
    source, base = ModelSource(model, weights="random"), MergeConfig(rate=0.0)
    options = RunOptions(threads=1)
    return tune(source, [folder], base, levers, options=options, out=out, **more)


def test_the_loss_is_that_of_the_whole_encoder(
    tiny_model: str, tiny_spec: ModelSpec, folder: Path
) -> None:
    """From the cached input of a block on, as from the photo on."""
    sam = structsam.load_sam(tiny_model, weights="random")
    meter, photo = LossMeter(sam, tiny_spec), find_photos([folder])[0]
    config = MergeConfig(rate=(0.0, 0.5, 0.0))
    short, whole = meter.losses(config, photo, 1), meter.losses(config, photo)
    assert short.embedding == pytest.approx(whole.embedding, rel=1e-4)
    pixels = torch.from_numpy(preprocess(read_image(photo), tiny_spec.preprocessing)[0])
    with torch.inference_mode():
        merged = apply_merging(sam, config).image_encoder(pixels)
        stock = structsam.remove_merging(sam).image_encoder(pixels)
    expected = float((merged - stock).norm() / stock.norm())
    assert whole.embedding == pytest.approx(expected, rel=1e-3)
    assert merging_loss.Loss(0.25, 0.5).total == 0.75


def test_masks_are_those_of_sam_predictor_in_the_photos_own_pixels(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At two input sizes, by the predictor of segment_anything and an IoU written out."""
    from segment_anything import SamPredictor

    photo, boxes = find_photos([folder])[0], ((0.05, 0.05, 0.45, 0.45), (0.3, 0.2, 0.9, 0.8))
    monkeypatch.setattr(ModelAtSize, "sure_boxes", lambda *given: boxes)
    judge = MaskJudge(ModelSource(model, weights="random"), MergeConfig(rate=0.0))
    judge.look_at([photo])
    drawn = {}
    for size in (None, 256):
        at_size = judge.model(size)
        features = at_size.features(MergeConfig(rate=0.0), photo)
        masks = at_size.masks(features, photo, boxes)
        assert masks.shape == (2, 96, 128)
        predictor = SamPredictor(structsam.load_sam(model, weights="random", image_size=size))
        predictor.set_image(read_image(photo))
        scale = np.array([128, 96, 128, 96])
        for mask, corners in zip(masks, boxes, strict=True):
            expected, _, _ = predictor.predict(
                box=np.array(corners) * scale, multimask_output=False
            )
            assert mask_iou(mask, expected[0]) > 0.98
        drawn[size] = masks
        loss = judge.loss(at_size, features, photo)
        both = (drawn[None] & masks).sum((1, 2))
        either = (drawn[None] | masks).sum((1, 2))
        shares = [1.0 if not e else b / e for b, e in zip(both, either, strict=True)]
        assert loss == pytest.approx(1 - np.mean(shares), abs=1e-9)


def test_boxes_are_those_of_the_objects_that_the_model_is_surest_of(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that draws known squares; a quarter of the input is padding (128 x 96)."""
    photo = find_photos([folder])[0]
    at_size = ModelAtSize(ModelSource(model, weights="random"), None)
    side = 4 * (288 // 16)
    low_res = np.full((25, 4, side, side), -1.0, np.float32)
    scores = np.zeros((25, 4), np.float32)
    low_res[:, 0], scores[:, 0] = 1.0, 9.0  # the output for several prompts is not looked at
    low_res[3, 2, 10:20, 6:36], scores[3, 2] = 1.0, 0.9
    low_res[7, 1, 12:20, 6:36], scores[7, 1] = 1.0, 0.8  # overlaps the surer one
    low_res[9, 3, 54:72, 0:72], scores[9, 3] = 1.0, 0.95  # lies in the padding
    low_res[11, 1, 30:54, 60:72], scores[11, 1] = 1.0, 0.5
    asked = []
    monkeypatch.setattr(
        ModelAtSize,
        "_decode",
        lambda self, features, path, coords, labels: asked.append(coords) or (low_res, scores),
    )
    boxes = at_size.sure_boxes({}, photo)
    assert boxes == ((6 / 72, 10 / 54, 36 / 72, 20 / 54), (60 / 72, 30 / 54, 1.0, 1.0))
    assert asked[0].shape == (25, 2, 2) and asked[0][0, 0].tolist() == pytest.approx([0.1, 0.1])
    scores[11] = low_res[11] = -1
    assert at_size.sure_boxes({}, photo) == FIXED_BOXES


def test_a_search_measures_and_writes_what_export_takes(
    model: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tune"
    levers = replace(LEVERS, sizes=(), int8=True)
    report = save_report(found(model, folder, out, levers, limit=Limit(max_loss=0.9)), out)
    kinds = {each.point.levers for each in report.found}
    assert kinds == {(), ("merging",), ("int8",), ("merging", "int8")}
    assert report.photos == (3, 1) and not list((out / "encoders").glob("*"))
    by_key = {each.point.key: each for each in report.found}
    assert by_key["stock"].loss == by_key["trained-unmerged-fp32"].loss == 0
    assert all(each.ms > 0 and 0 <= each.loss <= 1 for each in report.found)
    assert report.chosen.held_out is not None and report.chosen in report.frontier
    assert {file.name for file in report.files} == {"recipe.json", "frontier.json", "frontier.png"}
    told = json.loads(json.dumps(facts(report)))
    assert len(told["measured"]) == len(report.found) and told["chosen"] == report.chosen.point.key
    assert frontier_table(report).row_count >= 4 and "the fastest within" in verdict(report)
    recipe = read_recipe(report.files[0])
    assert recipe.calibrate is None, "four photos are too few for an export"
    # the same search with another limit answers from what was measured
    again = found(model, folder, out, levers, limit=Limit(max_loss=1e-6))
    assert again.chosen.loss <= 1e-6


def test_export_makes_the_bundle_of_a_recipe(
    fast_decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from structsam_export.tune.recipe import Recipe

    file = tmp_path / "recipe.json"
    mix = MergeConfig(rate=(0.5, 0.0, 0.25))
    Recipe(fast_decoder, mix.to_dict(), None, "fp32").save(file)
    with pytest.raises(SystemExit) as done:
        main(
            f"export --model {fast_decoder} --weights random --recipe {file} --backend onnxruntime "
            f"--out {tmp_path / 'engines'}".split()
        )
    assert not done.value.code, capsys.readouterr().err
    (path,) = (tmp_path / "engines").iterdir()
    bundle = open_bundle(path)
    assert bundle.precision == "fp32" and bundle.manifest["merging"]["rate"] == [0.5, 0.0, 0.25]
    for option in ("--precision=fp16", "--image-size=256", "--rate=0.5"):
        with pytest.raises(SystemExit):
            main(["export", "--model", fast_decoder, "--recipe", str(file), option])
        assert "--recipe says what" in capsys.readouterr().err


def fake_times(seen: list[str]) -> Callable[..., latency.Times]:
    def times(encoders: Any, points: list[Point], *more: Any) -> latency.Times:
        seen.extend(point.key for point in points)
        return latency.Times({p: 1.0 - 0.1 * len(p.levers) for p in points}, [10.0, 12.0], {})

    return times


def test_nothing_is_measured_twice(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "times_in_turns", fake_times(seen))
    first = found(model, folder, tmp_path / "tune", replace(LEVERS, per_block=True))
    kinds = {each.point.levers for each in first.found}
    assert kinds == {(), ("size",), ("merging",), ("size", "merging")}
    assert len(seen) == len(set(seen)) and first.found[-1].ms == 11.0
    said: list[str] = []
    before = list(seen)
    monkeypatch.setattr(
        MaskJudge, "loss", lambda *a: pytest.fail("it was measured before it was stopped")
    )
    second = found(
        model, folder, tmp_path / "tune", replace(LEVERS, per_block=True), say=said.append
    )
    assert seen == before and second.found == first.found
    assert any("results are there already" in line for line in said)
    with pytest.raises(UserError, match=r"nothing runs within 0.1 ms here: the fastest encoder"):
        found(
            model,
            folder,
            tmp_path / "tune",
            replace(LEVERS, per_block=True),
            limit=Limit(max_latency=0.1),
        )


def test_another_method_is_a_lever(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "times_in_turns", fake_times(seen))
    levers = replace(LEVERS, sizes=(), methods=("tomesd",))
    report = found(model, folder, tmp_path / "tune", levers)
    assert {"trained-attention-0.5-fp32", "trained-tomesd-attention-0.5-fp32"} <= set(seen)
    by_method = {each.point.method: each for each in report.found if each.point.merges}
    assert by_method["tomesd"].loss != by_method[None].loss
    base = MergeConfig(rate=0.0, options=(("channels", "all"),))
    other = by_method["tomesd"].point
    assert other.config(base) == MergeConfig("tomesd", 0.5)
    assert by_method[None].point.config(base) == replace(base, rate=0.5)
    assert other.label(MODELS[model]).endswith("pixels, tomesd attention 0.5, fp32")


STOPPED = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.conftest import ModelSpec
from structsam.models import MODELS
from structsam.config import MergeConfig
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.runtimes import RunOptions
from structsam_export.tune import on_this_machine as module
from structsam_export.tune.tune import tune
from tests.structsam_export.tune.test_tune import LEVERS, fake_times

spec = ModelSpec("larger", "tiny", 32, 3, 2, (1,), image_size=288)
MODELS[spec.name] = replace(
    spec, preprocessing=replace(spec.preprocessing, image_size=288)
)
module.times_in_turns = fake_times([])
tune(
    ModelSource("larger", weights="random"), [sys.argv[1]], MergeConfig(rate=0.0), LEVERS,
    out=sys.argv[2], backend="onnxruntime", options=RunOptions(threads=1),
)
"""


def test_two_searches_in_one_folder_are_refused(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one would delete the encoders that the first one measures."""
    out, refusals = tmp_path / "tune", []
    times = fake_times([])

    def second_meanwhile(*given: Any) -> Any:
        (out / "encoders" / "mine").mkdir(parents=True)
        with pytest.raises(UserError, match="another search is writing into .*tune") as refused:
            found(model, folder, out, backend="onnxruntime")
        refusals.append(refused)
        assert (out / "encoders" / "mine").is_dir()
        return times(*given)

    monkeypatch.setattr(module, "times_in_turns", second_meanwhile)
    assert found(model, folder, out, backend="onnxruntime").chosen and len(refusals) == 1
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(UserError, match="exists and is no search"):
        found(model, folder, tmp_path / "letters", backend="onnxruntime")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["a.txt"]


def test_a_killed_search_goes_on(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tune"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(folder), str(out)], env={**os.environ}
    )
    file = out / "measured.jsonl"
    while process.poll() is None and not (file.exists() and len(file.read_text().splitlines()) > 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(file.read_text().splitlines())
    assert kept > 2
    monkeypatch.setattr(module, "times_in_turns", fake_times([]))
    said: list[str] = []
    report = found(model, folder, out, backend="onnxruntime", say=said.append)
    assert report.chosen and any("results are there already" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-latency", "1s", "--max-loss", "0.1"], "cannot both be kept"),
        (["--max-latency", "soon"], "no time. Use one such as 0.8s"),
        (["--max-latency", "0s"], "cannot be met"),
        (["--max-loss", "2"], "between 0 and 1"),
        (["--placement", "token"], "unknown placement 'token'"),
        (["--precision", "int4"], "unknown precision 'int4'"),
        (["--sizes", "1000"], "1000"),
        (["--rates", "0.9"], "0.9"),
        (["--backend", "torch"], "exports encoders, and torch runs none"),
        (["--backend", "openvino:NPU"], "openvino"),
        (["--image-size", "768"], "--image-size"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "tune"
    with pytest.raises(SystemExit) as done:
        main(["tune", "--images", str(folder), "--out", str(out), *arguments])
    told = capsys.readouterr().err
    assert done.value.code == 2 and message in told and "Traceback" not in told
    assert not out.exists()


@pytest.mark.parametrize(("count", "message"), [(0, "no photo or folder"), (2, "2 photo")])
def test_too_few_photos(folder: Path, tmp_path: Path, count: int, message: str) -> None:
    photos = sorted(folder.iterdir())[:count] or [tmp_path / "none"]
    with pytest.raises(UserError, match=message):
        find_photos(photos)
