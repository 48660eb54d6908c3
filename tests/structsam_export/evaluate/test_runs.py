"""Evaluating torch models and bundles: the same masks, runs that add up, nothing lost or mixed."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.evaluation.evaluate import Setting
from structsam.evaluation.metrics.dice import Dice
from structsam.evaluation.metrics.iou import IoU
from structsam.evaluation.prompts import Prompting
from structsam.evaluation.protocols import PROTOCOLS
from structsam.evaluation.read_results import read_facts
from structsam.models import MODELS, model_spec
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.evaluate.runs import (
    BASELINE,
    bundle_runs,
    evaluate_runs,
    model_runs,
)
from structsam_export.merging_choices import label_of, merge_configs
from structsam_export.predict.predictor import Predictor
from structsam_export.runtimes.torch_backend import InMemoryBackend
from tests.structsam.evaluation.toy import ToyDataset, toy_sample

pytest.importorskip("pycocotools")
pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def setting(count=2, **more):
    return Setting(ToyDataset(count), PROTOCOLS["sam"], [IoU()], **more)


def rows(folder: Path, run: str) -> list[dict[str, str]]:
    with (folder / "rows" / f"{run}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def runs_of(tiny_model, rates=(0.5,), **more):
    configs, left_out = merge_configs(model_spec(tiny_model), ["structsam"], rates, ["all"])
    assert not left_out
    seed = more.pop("seed", 0)
    return model_runs(ModelSource(tiny_model, weights="random", seed=seed), configs, **more)


def test_a_model_in_memory_draws_the_masks_of_samplepredictor(tiny_sam_factory, tiny_spec):
    from segment_anything import SamPredictor

    sam = tiny_sam_factory()
    backend = InMemoryBackend(sam)
    ours = Predictor(backend.in_memory_bundle(tiny_spec.preprocessing), backend)
    stock, sample = SamPredictor(sam), toy_sample("photo")
    ours.set_image(sample.image)
    stock.set_image(sample.image)
    box = np.array([20.0, 10.0, 90.0, 70.0])
    for multimask in (False, True):
        _, scores, low_res = ours.predict(box=box, multimask_output=multimask)
        _, stock_scores, stock_low_res = stock.predict(box=box, multimask_output=multimask)
        np.testing.assert_allclose(scores, stock_scores, atol=1e-4)
        np.testing.assert_allclose(low_res, stock_low_res, atol=1e-3)


def test_merging_changes_the_masks_and_the_baseline_comes_first(tiny_model, tmp_path):
    facts, runs = runs_of(tiny_model, rates=(0.0, 0.25, 0.5))
    assert [run.name for run in runs] == [BASELINE, "structsam-r0.25", "structsam-r0.50"]
    told = []
    record = evaluate_runs(
        facts, runs, setting(), tmp_path / "out", progress=lambda *state: told.append(state)
    )
    assert [run["complete"] for run in record["runs"]] == [True] * 3
    assert record == read_facts(tmp_path / "out")
    gmac = [run["gmac"] for run in record["runs"]]
    assert gmac == sorted(gmac, reverse=True)
    assert told[-1] == ("structsam 0.5", 2, 2)
    masks = [[row["rle"] for row in rows(tmp_path / "out", run.name)] for run in runs]
    assert len({tuple(each) for each in masks}) == 3


def test_the_unmerged_run_is_stock_sam(tiny_model, tmp_path):
    from segment_anything import SamPredictor

    from structsam import load_sam
    from structsam.evaluation.mask_rle import decode

    facts, runs = runs_of(tiny_model)
    evaluate_runs(facts, runs[:1], setting(1), tmp_path / "out")
    stock, sample = SamPredictor(load_sam(tiny_model, weights="random")), toy_sample("image00")
    stock.set_image(sample.image)
    for row in rows(tmp_path / "out", BASELINE):
        masks, _, _ = stock.predict(
            box=np.array(list(map(float, row["box"].split()))), multimask_output=False
        )
        ours = decode(row["rle"], sample.image.shape[:2])
        assert (masks[0] != ours).mean() < 1e-3


def test_precisions_and_backends_are_runs_of_their_own(tiny_model, tiny_bundle, tmp_path):
    facts, runs = runs_of(tiny_model)
    _, half = runs_of(tiny_model, precision="fp16")
    assert [run.name for run in half] == ["unmerged-fp16", "structsam-r0.50-fp16"]
    with half[0].open() as predictor:
        assert predictor.backend.precision == "fp16"
    _, here = bundle_runs([tiny_bundle], "onnxruntime", threads=1)
    _, torch_runs = bundle_runs([tiny_bundle], "torch")
    assert here[0].name == tiny_bundle.name and torch_runs[0].name == f"{tiny_bundle.name}-torch"
    with here[0].open() as predictor:
        assert predictor.backend.name == "onnxruntime"
    out = tmp_path / "out"
    evaluate_runs(facts, runs[:1], setting(1), out)
    other = replace(runs[0], backend="onnxruntime")
    with pytest.raises(UserError, match="another run named unmerged: backend 'torch'"):
        evaluate_runs(facts, [other], setting(1), out)
    with pytest.raises(UserError, match="two runs are named"):
        evaluate_runs(facts, [runs[0], other], setting(1), tmp_path / "twice")


def test_a_moved_dataset_goes_on_and_other_metrics_do_not(tiny_model, tmp_path):
    facts, runs = runs_of(tiny_model)
    evaluate_runs(facts, runs[:1], setting(1), tmp_path / "out")
    moved = setting(1)
    moved.dataset.root = tmp_path
    evaluate_runs(facts, runs[:1], moved, tmp_path / "out")
    with pytest.raises(UserError, match="metrics"):
        evaluate_runs(facts, runs[:1], replace(setting(1), metrics=[Dice()]), tmp_path / "out")


def test_bundle_and_model_agree(tiny_bundle, tiny_model, tmp_path):
    """A bundle through ONNX Runtime scores as the torch model that it was made from."""
    facts, runs = bundle_runs([tiny_bundle], "onnxruntime")
    evaluate_runs(facts, runs, setting(), tmp_path / "bundle")
    facts, runs = runs_of(tiny_model)
    evaluate_runs(facts, runs[1:], setting(), tmp_path / "model")
    one = rows(tmp_path / "bundle", tiny_bundle.name)
    two = rows(tmp_path / "model", "structsam-r0.50")
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert abs(float(a["iou"]) - float(b["iou"])) < 0.02
    (bundle_run,) = read_facts(tmp_path / "bundle")["runs"]
    assert bundle_run["backend"] == "onnxruntime"
    assert bundle_run["gmac"] == pytest.approx(runs[1].cost["gmac"], abs=1e-3)
    assert bundle_run["kept_tokens"] == pytest.approx(runs[1].cost["kept_tokens"], abs=1e-3)


def test_asking_again_adds_runs_and_repeats_none(tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    facts, runs = runs_of(tiny_model)
    evaluate_runs(facts, runs, setting(), out)
    before = {file.name: file.read_bytes() for file in (out / "rows").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("structsam.load_sam", lambda *a, **k: pytest.fail("loaded again"))
        facts, runs = runs_of(tiny_model)
        told = []
        record = evaluate_runs(facts, runs, setting(), out, progress=lambda *s: told.append(s))
        assert record == read_facts(out) and all(run["complete"] for run in record["runs"])
        assert told == [("unmerged", 2, 2), ("structsam 0.5", 2, 2)]
    facts, more = runs_of(tiny_model, rates=(0.25,))
    record = evaluate_runs(facts, more, setting(), out)
    assert {run["name"] for run in record["runs"]} == {
        BASELINE, "structsam-r0.50", "structsam-r0.25",
    }  # fmt: skip
    for name, content in before.items():
        assert (out / "rows" / name).read_bytes() == content


def test_runs_are_named_and_counted_without_torch():
    """So a folder in which nothing is missing is seen in a second or two, not in twenty."""
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'torchvision', 'segment_anything'))\n"
        "from structsam.models import model_spec\n"
        "from structsam_export.bundle.weights_source import ModelSource\n"
        "from structsam_export.evaluate.runs import model_runs\n"
        "from structsam_export.merging_choices import merge_configs\n"
        "configs, _ = merge_configs(model_spec('vit_t'), ['structsam', 'tome'], [0.5], ['all'])\n"
        "facts, runs = model_runs(ModelSource('vit_t'), configs)\n"
        "print(facts['weights'], *(run.name for run in runs))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["embedded", "unmerged", "structsam-r0.50", "tome-r0.50"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"count": 3}, "dataset"),
        ({"smallest": 0.01}, "protocol"),
        ({"prompting": Prompting("click")}, "protocol"),
    ],
)
def test_a_folder_holds_one_evaluation(tiny_model, tmp_path, other, message):
    facts, runs = runs_of(tiny_model)
    evaluate_runs(facts, runs[:1], setting(), tmp_path / "out")
    with pytest.raises(UserError, match=rf"another evaluation: {message}\..*`out=`"):
        evaluate_runs(facts, runs[:1], setting(**other), tmp_path / "out")
    facts, runs = runs_of(tiny_model, seed=5)
    with pytest.raises(UserError, match=r"model\.seed 0 \(now 5\)"):
        evaluate_runs(facts, runs[:1], setting(), tmp_path / "out")


def test_other_folders_are_left_alone(tiny_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    facts, runs = runs_of(tiny_model)
    with pytest.raises(UserError, match="no folder of results"):
        evaluate_runs(facts, runs, setting(), tmp_path)


def test_a_rate_above_the_limit_is_left_out_by_name(tiny_spec):
    configs, left_out = merge_configs(tiny_spec, ["structsam", "tome"], [0.7], ["all"])
    assert [(config.method, config.rate) for config in configs] == [("structsam", 0.7)]
    (entry,) = left_out
    assert entry["name"] == "tome 0.7" and "0.5" in entry["reason"]
    with pytest.raises(UserError, match="outside"):  # nothing is left: the user's mistake
        merge_configs(tiny_spec, ["tome"], [0.7], ["all"])


def test_bundles_of_other_weights_are_refused(tiny_bundle, own_bundle):
    own_bundle.manifest["model"]["seed"] = 7
    with pytest.raises(UserError, match="other weights"):
        bundle_runs([tiny_bundle, own_bundle])


def test_labels_say_what_differs():
    (config,), _ = merge_configs(
        MODELS["vit_t"],
        ["structsam"],
        [0.5],
        ["7,8,9,10,11"],
        ["block"],
        options={"operator": "central"},
    )
    assert label_of(config.to_dict()) == "structsam 0.5, layers 7 to 11, block, operator=central"
    assert label_of({"method": "tome", "rate": 0.5, "layers": "global"}) == "tome 0.5, global"


def test_strict_and_listing_problems(tiny_model, tmp_path):
    from structsam.evaluation.sample import Problem

    facts, runs = runs_of(tiny_model)
    lacking = setting()
    lacking.dataset.listing_problems.append(Problem("ghost", "missing partner", "no mask"))
    record = evaluate_runs(facts, runs[:1], lacking, tmp_path / "out")
    assert {"image_id": "ghost", "kind": "missing partner", "detail": "no mask"} in (
        record["problems"]
    )
    strict = setting(strict=True)
    strict.dataset.listing_problems.append(Problem("ghost", "missing partner", "no mask"))
    with pytest.raises(UserError, match="ghost: missing partner"):
        evaluate_runs(facts, runs[:1], strict, tmp_path / "strict")


def test_two_at_once_into_one_folder_are_refused(tiny_model, tmp_path):
    """The other one lives in another process, and its end frees the folder."""
    code = (
        "import pathlib, sys; from structsam_export.bundle.alone import alone\n"
        "with alone(pathlib.Path(sys.argv[1]), 'evaluation'):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    out = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        facts, runs = runs_of(tiny_model)
        with pytest.raises(UserError, match="another evaluation is writing into"):
            evaluate_runs(facts, runs[:1], setting(1), out)
        assert not (out / "evaluation.json").exists()
    finally:
        other.kill()
        other.communicate()
    assert evaluate_runs(facts, runs[:1], setting(1), out)["runs"][0]["complete"]
