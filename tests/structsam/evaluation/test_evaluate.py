"""The loop: rows survive an interruption, problems are counted, memory stays flat."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.evaluation import results
from structsam.evaluation.evaluate import Setting, choose_objects, evaluate, evenly
from structsam.evaluation.metrics.base import MaskMetric
from structsam.evaluation.prompts import Prompting
from structsam.evaluation.protocols import PROTOCOLS
from structsam.evaluation.results import ProblemFile, RunFiles
from structsam.evaluation.sample import ObjectMask, ProblemError
from tests.structsam.evaluation.toy import BoxFiller, ToyDataset, toy_sample

pytest.importorskip("pycocotools")


class Overlap(MaskMetric):
    name = "overlap"
    title = "overlap"

    def score(self, predicted, truth):
        return float((predicted & truth).sum() / (predicted | truth).sum())


def make(dataset=None, **more):
    return Setting(dataset or ToyDataset(), PROTOCOLS["sam"], [Overlap()], **more)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_rows_say_what_was_predicted(tmp_path):
    setting = make()
    evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    rows = read(tmp_path / "rows" / "run.csv")
    assert {row["image_id"] for row in rows} == set(setting.dataset.image_ids)
    first = toy_sample(rows[0]["image_id"])
    assert int(rows[0]["objects"]) == len(first.objects) - 1  # the dot is too small
    assert int(rows[0]["area"]) == first.objects[0].mask.sum()
    assert (rows[0]["height"], rows[0]["width"]) == ("96", "128")
    # filling the box is right but for the one corner that every toy object lacks
    area = np.array([int(row["area"]) for row in rows])
    overlap = np.array([float(row["overlap"]) for row in rows])
    np.testing.assert_allclose(overlap, area / (area + 1), atol=1e-5)
    timing = read(tmp_path / "timing" / "run.csv")
    assert [row["encode_ms"] for row in timing] == ["2.00"] * 5
    assert sum(int(row["rows"]) for row in timing) == len(rows)


@pytest.mark.parametrize("fail_at", [0, 1, 4])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, fail_at):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    setting = make()
    ids = setting.dataset.image_ids
    evaluate(BoxFiller(), setting, ids, whole, "run")
    with pytest.raises(KeyboardInterrupt):
        evaluate(BoxFiller(fail_at), setting, ids, parts, "run")
    second = BoxFiller()
    evaluate(second, setting, ids, parts, "run")
    assert second.images >= 5 - fail_at
    assert (parts / "rows/run.csv").read_bytes() == (whole / "rows/run.csv").read_bytes()
    assert (parts / "problems.csv").read_bytes() == (whole / "problems.csv").read_bytes()
    third = BoxFiller()
    evaluate(third, setting, ids, parts, "run")
    assert third.images == 0


def test_a_file_cut_anywhere_is_repaired(tmp_path):
    setting = make(ToyDataset(3))
    ids = setting.dataset.image_ids
    evaluate(BoxFiller(), setting, ids, tmp_path, "run")
    rows, timing = tmp_path / "rows/run.csv", tmp_path / "timing/run.csv"
    good_rows, good_timing = rows.read_bytes(), timing.read_bytes()
    for cut in range(0, len(good_timing), 7):
        timing.write_bytes(good_timing[:cut])
        evaluate(BoxFiller(), setting, ids, tmp_path, "run")
        assert rows.read_bytes() == good_rows
        assert timing.read_bytes() == good_timing
    for cut in range(0, len(good_rows), 97):  # rows of the last image only half written
        rows.write_bytes(good_rows[:cut])
        timing.unlink()
        evaluate(BoxFiller(), setting, ids, tmp_path, "run")
        assert rows.read_bytes() == good_rows


def test_lost_and_doubled_rows_are_done_again(tmp_path):
    setting = make(ToyDataset(4))
    ids = setting.dataset.image_ids
    evaluate(BoxFiller(), setting, ids, tmp_path, "run")
    rows = tmp_path / "rows/run.csv"
    good = rows.read_text()
    lines = good.splitlines(keepends=True)
    for damage in (lines[:-1], [*lines, lines[-1]], lines[:1]):
        rows.write_text("".join(damage))
        evaluate(BoxFiller(), setting, ids, tmp_path, "run")
        assert sorted(rows.read_text().splitlines()) == sorted(good.splitlines())
    rows.unlink()
    evaluate(BoxFiller(), setting, ids, tmp_path, "run")
    assert rows.read_text() == good


def test_rows_come_before_the_line_that_says_done(tmp_path, monkeypatch):
    """A full disk between the two must not leave an image done without its rows."""
    setting, real = make(ToyDataset(2)), results._append

    def full(path, columns, rows):
        if path.parent.name == "rows":
            raise UserError("disk full")
        real(path, columns, rows)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="full"):
        patch.setattr(results, "_append", full)
        evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    assert {row["image_id"] for row in read(tmp_path / "rows/run.csv")} == {"image00", "image01"}


def test_void_pixels_are_not_scored(tmp_path):
    class Void(ToyDataset):
        def load(self, image_id):
            sample = super().load(image_id)
            wrong = np.zeros((96, 128), bool)
            for each in sample.objects:  # the one corner that a filled box has too much
                y, x = np.flatnonzero(each.mask.any(1))[0], np.flatnonzero(each.mask.any(0))[0]
                wrong[y, x] = True
            return replace(sample, valid=~wrong)

    setting = make(Void(2))
    evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    rows = read(tmp_path / "rows/run.csv")
    assert rows and all(float(row["overlap"]) == 1 for row in rows)


def test_an_object_without_a_pixel_to_score_is_left_out_and_named(tmp_path):
    """Else an empty mask scores 1 there, and a full one 0."""

    class Void(ToyDataset):
        def load(self, image_id):
            sample = super().load(image_id)
            return replace(sample, valid=~sample.objects[0].mask)

    setting = make(Void(2))
    evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    assert "0" not in {row["object_id"] for row in read(tmp_path / "rows/run.csv")}
    told = [row for row in read(tmp_path / "problems.csv") if row["kind"] == "left out"]
    assert [row["image_id"] for row in told] == ["image00", "image01"]
    assert all("object 0: every pixel" in row["detail"] for row in told)


def test_a_correcting_click_keeps_off_void_pixels(tmp_path):
    mask = np.zeros((96, 128), bool)
    mask[40:52, 50:62] = True

    class Void(ToyDataset):
        def load(self, image_id):
            return replace(super().load(image_id), valid=mask, objects=(ObjectMask("a", mask),))

    setting = make(Void(1), prompting=Prompting("three-click"))
    filler = BoxFiller()  # of 20 pixels round a click: all that is wrong is void
    evaluate(filler, setting, setting.dataset.image_ids, tmp_path, "run")
    clicks = filler.calls[-1]["points"][0].astype(int)
    assert len(clicks) == 3 and all(mask[y, x] for x, y in clicks)
    assert filler.calls[-1]["labels"][0].tolist() == [1, 1, 1]


def test_a_name_of_many_bytes_may_be_cut_inside_a_letter(tmp_path):
    class Named(ToyDataset):
        def load(self, image_id):
            sample = super().load(image_id)
            first = replace(sample.objects[0], category="Straße\nam See")
            return replace(sample, objects=(first,))

    setting = make(Named(2))
    ids = setting.dataset.image_ids
    evaluate(BoxFiller(), setting, ids, tmp_path, "run")
    rows = tmp_path / "rows/run.csv"
    good = rows.read_bytes()
    assert [row["category"] for row in read(rows)] == ["Straße am See"] * 2
    rows.write_bytes(good[: good.rindex("ß".encode()) + 1])
    assert setting.files_of(tmp_path, "run").missing(ids) == ids[1:]
    evaluate(BoxFiller(), setting, ids, tmp_path, "run")
    assert rows.read_bytes() == good


def test_boxes_of_the_set_are_scaled_and_cut(tmp_path):
    class Boxed(ToyDataset):
        def load(self, image_id):
            sample = super().load(image_id)
            boxed = replace(sample.objects[0], box=(16.0, 24.0, 128.01, 96.0))
            return replace(sample, objects=(boxed,))

    for protocol, expected in (("sam", [16, 24, 128, 96]), ("hqsam", [128, 256, 1024, 1024])):
        setting = Setting(Boxed(1), PROTOCOLS[protocol], [Overlap()])
        filler = BoxFiller()
        evaluate(filler, setting, setting.dataset.image_ids, tmp_path / protocol, "run")
        np.testing.assert_allclose(filler.calls[0]["box"], [expected])


def test_the_choice_depends_on_image_and_seed():
    def picks(seed):
        setting = make(max_objects=1, prompting=Prompting(seed=seed))
        many = [toy_sample(f"image{i:02d}") for i in range(30)]
        three = tuple(replace(many[0].objects[0], object_id=name) for name in "abc")
        many = [replace(sample, objects=three) for sample in many]
        return [choose_objects(sample, setting)[0][0].object_id for sample in many]

    assert picks(0) == picks(0)
    assert len(set(picks(0))) > 1  # not the same place in every image
    assert picks(0) != picks(1)


def test_other_columns_are_refused(tmp_path):
    RunFiles(tmp_path, "run", ["iou"]).append([{"image_id": "a"}], {"image_id": "a"})
    with pytest.raises(UserError, match="another evaluation"):
        RunFiles(tmp_path, "run", ["dice"])


def test_problems_are_counted_once_and_strict_stops(tmp_path):
    dataset = ToyDataset(4, broken=("image02",))
    evaluate(BoxFiller(), make(dataset), dataset.image_ids, tmp_path, "one")
    evaluate(BoxFiller(), make(dataset), dataset.image_ids, tmp_path, "two")
    problems = ProblemFile(tmp_path).sorted()
    kinds = [problem["kind"] for problem in problems]
    assert kinds.count("unreadable") == 1 and kinds.count("too small") == 3
    assert "image02" not in {row["image_id"] for row in read(tmp_path / "rows/one.csv")}
    with pytest.raises(ProblemError, match="damaged for the test"):
        evaluate(
            BoxFiller(),
            make(dataset, strict=True, smallest=0.0),
            dataset.image_ids,
            tmp_path / "strict",
            "one",
        )


def test_few_images_are_held_at_once(tmp_path):
    dataset = ToyDataset(40)
    held = []

    class Slow(BoxFiller):
        def set_image(self, image):
            held.append(len(dataset.loaded) - self.images)
            super().set_image(image)

    evaluate(Slow(), make(dataset, workers=2), dataset.image_ids, tmp_path, "run")
    assert max(held) <= 4


def test_the_choice_of_objects_is_the_same_in_every_run():
    setting = make(max_objects=1)
    chosen = [choose_objects(toy_sample(f"image{i:02d}"), setting)[0] for i in range(20)]
    again = [choose_objects(toy_sample(f"image{i:02d}"), setting)[0] for i in range(20)]
    assert all(len(objects) == 1 for objects in chosen)
    assert [o[0].object_id for o in chosen] == [o[0].object_id for o in again]
    assert len({o[0].object_id for o in chosen}) > 1  # not always the first


def test_evenly_spreads_and_refuses_nothing():
    assert evenly(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert evenly(list("abc"), None) == evenly(list("abc"), 9) == ["a", "b", "c"]
    with pytest.raises(UserError, match="limit 0"):
        evenly(list("abc"), 0)


@pytest.mark.parametrize("wrong", [{"smallest": 1.0}, {"max_objects": 0}, {"workers": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="out of range"):
        make(**wrong)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("kind", ["box", "click", "three-click"])
def test_every_protocol_runs_with_every_prompt(tmp_path, protocol, kind):
    setting = Setting(ToyDataset(2), PROTOCOLS[protocol], [Overlap()], Prompting(kind))
    evaluate(BoxFiller(), setting, setting.dataset.image_ids, tmp_path, "run")
    rows = read(tmp_path / "rows" / "run.csv")
    assert rows and all(0 <= float(row["overlap"]) <= 1 for row in rows)
    if kind == "box":
        assert min(float(row["overlap"]) for row in rows) > 0.8


def test_missed_objects_and_empty_detections_have_rows_of_their_own(tmp_path):
    """What average precision needs of a detector's boxes, and no mean over masks may see."""

    class Detected(ToyDataset):
        def load(self, image_id):
            sample = super().load(image_id)
            hit = replace(sample.objects[0], score=0.5, box=(10.0, 10.0, 60.0, 60.0))
            ghost = ObjectMask("ghost", np.zeros((96, 128), bool), box=(1.0, 1.0, 9.0, 9.0))
            missed = replace(sample.objects[0], object_id="missed", prompted=False)
            return replace(sample, objects=(hit, ghost, missed))

    setting = make(Detected(1))
    filler = BoxFiller()
    evaluate(filler, setting, setting.dataset.image_ids, tmp_path, "run")
    assert filler.calls[0]["box"].tolist() == [[10, 10, 60, 60], [1, 1, 9, 9]]
    hit, ghost, missed = read(tmp_path / "rows/run.csv")
    assert hit["objects"] == "3" and hit["score"] == "0.5"  # the detector's
    assert hit["overlap"] and hit["rle"] and hit["truth_rle"]
    assert ghost["rle"] and not ghost["truth_rle"] and not ghost["overlap"]
    assert missed["truth_rle"] and not missed["rle"] and not missed["score"]
    assert not missed["overlap"]
