"""Runs of one model at several input sizes lie in one folder, compared mask by mask."""

from __future__ import annotations

import json

import pytest

from structsam.evaluation.evaluate import Setting
from structsam.evaluation.metrics.iou import IoU
from structsam.evaluation.protocols import PROTOCOLS
from structsam.evaluation.read_results import read_facts
from structsam.evaluation.summary import summarise
from structsam.models import MODELS
from structsam_export.bundle.weights_source import ModelRecord, ModelSource
from structsam_export.evaluate.curves import series_of
from structsam_export.evaluate.runs import LatestModel, evaluate_runs, model_runs
from tests.structsam.evaluation.toy import ToyDataset

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def runs_at(tiny_model, sizes, configs=(), models=None):
    facts, runs = None, []
    for size, embedding in sizes:
        source = ModelSource(tiny_model, None, "random", 0, size, embedding)
        own, found = model_runs(source, configs, models=models)
        assert facts in (None, own)
        facts, runs = own, runs + found
    return facts, runs


@pytest.mark.parametrize("protocol", ("sam", "medsam"))
def test_sizes_are_runs_of_one_folder_and_the_trained_one_is_the_baseline(
    tiny_model, tmp_path, protocol
):
    from structsam.config import MergeConfig

    sizes = [(288, "native"), (None, "native"), (288, "upsample")]
    models = LatestModel()
    facts, runs = runs_at(tiny_model, sizes, [MergeConfig()], models)
    assert [run.name for run in runs] == [
        "unmerged-288", "288-structsam-r0.50",
        "unmerged", "structsam-r0.50",
        "unmerged-288up", "288up-structsam-r0.50",
    ]  # fmt: skip
    assert [run.label for run in runs][:3] == [
        "unmerged, 288 pixels", "structsam 0.5, 288 pixels", "unmerged"
    ]  # fmt: skip
    setting = Setting(ToyDataset(2), PROTOCOLS[protocol], [IoU()])
    evaluate_runs(facts, runs, setting, tmp_path / "out")
    summary = summarise(tmp_path / "out")
    assert summary.baseline is not None and summary.baseline.name == "unmerged"
    others = [run for run in summary.runs if not run.baseline]
    assert all(run.metrics["iou"].difference is not None for run in others)
    assert not [note for run in others for note in run.notes]
    assert list(series_of(others)) == [
        "unmerged, 288 pixels, native",
        "structsam, 288 pixels, native",
        "structsam",
        "unmerged, 288 pixels, upsample",
        "structsam, 288 pixels, upsample",
    ]


def test_without_the_trained_size_the_unmerged_run_there_is_the_baseline(tiny_model, tmp_path):
    facts, runs = runs_at(tiny_model, [(288, "native")])
    setting = Setting(ToyDataset(1), PROTOCOLS["sam"], [IoU()])
    evaluate_runs(facts, runs, setting, tmp_path / "out")
    baseline = summarise(tmp_path / "out").baseline
    assert baseline is not None and baseline.name == "unmerged-288"
    assert read_facts(tmp_path / "out")["runs"][0]["image_size"] == 288


def test_one_model_is_in_memory_at_a_time(tiny_model):
    models, first = LatestModel(), ModelSource(tiny_model, weights="random")
    sam = models.of(first)
    assert models.of(ModelSource(tiny_model, weights="random")) is sam
    other = models.of(ModelSource(tiny_model, weights="random", image_size=288))
    assert other.image_encoder.img_size == 288
    assert models.of(first) is not sam


def test_records_tell_a_size_only_where_it_is_another(tiny_model):
    old = {"name": "tiny", "weights": "random", "seed": 0, "checkpoint": None}
    assert ModelSource(tiny_model, weights="random").describe().to_dict() == old
    assert ModelSource(tiny_model, weights="random", image_size=256).describe().to_dict() == old
    assert ModelRecord.from_dict(old).spec is MODELS[tiny_model]
    source = ModelSource(tiny_model, None, "random", 0, 288, "upsample")
    record = source.describe()
    told = json.loads(json.dumps(record.to_dict()))
    assert told == {**old, "image_size": 288, "embedding": "upsample"}
    assert ModelRecord.from_dict(told) == record and record.spec == source.spec
    assert record.at_trained_size.to_dict() == old
    assert (record.size_text, record.at_trained_size.size_text) == ("288 pixels, upsample", "")
