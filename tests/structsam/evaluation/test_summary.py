"""Summaries of results folders whose numbers can be worked out on paper."""

from __future__ import annotations

import csv
import json
import math
import random
import tracemalloc

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.evaluation.read_results import read_latency, read_rows
from structsam.evaluation.results import RunFiles
from structsam.evaluation.summary import find_baseline, named, summarise
from tests.structsam.evaluation.small_results import (
    rle,
    row_of,
    run_facts,
    square,
    two_runs,
    write_facts,
    write_rows,
    write_times,
)


def change(folder, run, edit) -> None:
    """Rewrite the rows of a run as `edit(rows)` returns them."""
    path = folder / "rows" / f"{run}.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        write_rows(folder, run, edit(list(csv.DictReader(stream))))


def merged(summary):
    return summary.runs[1]


def test_means_differences_and_latency_as_on_paper(tmp_path) -> None:
    summary = summarise(two_runs(tmp_path))
    base, run = summary.runs
    assert summary.baseline is base and base.name == "unmerged"  # first, though second in the file
    assert (base.images, base.masks) == (4, 5)
    assert base.metrics["iou"].mean.value == pytest.approx(0.88)
    assert base.metrics["iou"].difference is None and base.metrics["iou"].verdict == ""
    iou = run.metrics["iou"]
    assert iou.mean.value == pytest.approx(0.66)
    assert iou.difference.value == pytest.approx(-0.22)
    assert (iou.title, iou.higher_is_better, iou.missing) == ("mIoU", True, 0)
    assert run.metrics["boundary_iou"].mean.value == pytest.approx(0.56)
    assert base.disagreement is None
    assert run.disagreement.value == pytest.approx((0.5 + 0.6) / 5)
    assert (base.latency.median_ms, base.latency.images) == (250, 4)
    assert (base.latency.p10_ms, base.latency.p90_ms) == pytest.approx((130, 370))
    assert run.latency.median_ms == 65
    assert not base.notes and not run.notes and not base.set_metrics


def test_the_mean_is_over_masks_and_not_over_images(tmp_path) -> None:
    """Over images first it would be (0.75 + 0.8 + 0.6 + 0.4) / 4."""
    run = merged(summarise(two_runs(tmp_path)))
    assert run.metrics["iou"].mean.value != pytest.approx(0.6375)
    assert (run.metrics["iou"].mean.images, run.metrics["iou"].mean.masks) == (4, 5)


def many_images(folder, change_of) -> None:
    """30 images of very different difficulty; the merged IoU is the unmerged plus `change_of`."""
    draw = random.Random(0)
    truth = square(5, 5, 10, 10)
    for name in ("unmerged", "tome-r0.50"):
        draw.seed(0)
        rows = []
        for i in range(30):
            value = draw.uniform(0.2, 0.8)
            value += change_of(i) if name != "unmerged" else 0
            more = {"iou": f"{value:.6g}", "boundary_iou": "", "error": f"{1 - value:.6g}"}
            rows.append(row_of(f"image{i}", "1", 1, truth, truth, **more))
        write_rows(folder, name, rows)
    write_facts(folder, [run_facts("unmerged"), run_facts("tome-r0.50", "tome", 0.5)])


@pytest.mark.parametrize(
    ("change_of", "verdict"),
    [
        (lambda i: -0.01 - 0.0001 * i, "worse"),
        (lambda i: 0.01 + 0.0001 * i, "better"),
        (lambda i: 0.01 * (-1) ** i, "no difference"),
        (lambda i: 0.0, "no difference"),
    ],
)
def test_verdicts_are_paired(tmp_path, change_of, verdict) -> None:
    many_images(tmp_path, change_of)
    run = merged(summarise(tmp_path))
    assert run.metrics["iou"].verdict == verdict
    assert run.disagreement.value == 0


def test_lower_may_be_better(tmp_path, monkeypatch) -> None:
    from structsam.evaluation import run_metrics

    class Error(run_metrics.METRICS["iou"]):
        title, higher_is_better = "error", False

    monkeypatch.setitem(run_metrics.METRICS, "error", Error)
    many_images(tmp_path, lambda i: -0.01 - 0.0001 * i)
    error = merged(summarise(tmp_path)).metrics["error"]
    assert error.difference.value > 0 and error.verdict == "worse" and error.title == "error"


def test_the_order_of_images_does_not_matter(tmp_path) -> None:
    """A run that was resumed has its images in another order than the baseline."""
    before = merged(summarise(two_runs(tmp_path)))
    change(tmp_path, "structsam-r0.50", lambda rows: rows[::-1])
    after = merged(summarise(tmp_path))
    assert after.metrics["iou"].difference.value == pytest.approx(
        before.metrics["iou"].difference.value
    )
    assert after.disagreement.value == pytest.approx(before.disagreement.value)


def test_nan_is_left_out_and_counted(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "structsam-r0.50", lambda rows: [rows[0], {**rows[1], "iou": ""}, *rows[2:]])
    iou = merged(summarise(tmp_path)).metrics["iou"]
    assert iou.missing == 1 and iou.mean.masks == 4
    assert iou.mean.value == pytest.approx((1 + 0.8 + 0.6 + 0.4) / 4)
    assert iou.difference.value == pytest.approx(-0.6 / 4)  # of the masks that both scored


def test_a_partial_image_is_left_out_and_named(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "structsam-r0.50", lambda rows: rows[1:])  # half of image a
    run = merged(summarise(tmp_path))
    assert run.metrics["iou"].mean.value == pytest.approx((0.8 + 0.6 + 0.4) / 3)
    assert run.metrics["iou"].difference.value == pytest.approx(-0.6 / 3)
    assert run.notes == ("left out, rows are missing or doubled: a",)


def test_a_doubled_row_and_a_broken_line_are_left_out_and_said(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "structsam-r0.50", lambda rows: [*rows[:3], rows[2], *rows[3:]])
    path = tmp_path / "rows" / "structsam-r0.50.csv"
    path.write_text(path.read_text("utf-8")[:-3], "utf-8")  # the last line, image d, breaks off
    run = merged(summarise(tmp_path))
    assert run.metrics["iou"].mean.value == pytest.approx((1 + 0.5 + 0.6) / 3)
    assert "left out, rows are missing or doubled: b" in run.notes
    assert "left out, lines that break off: 1" in run.notes
    assert "compared with the unmerged run on 2 images that both have" not in run.notes


def test_images_that_the_baseline_lacks_are_in_the_mean_but_not_compared(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "unmerged", lambda rows: rows[:-1])
    run = merged(summarise(tmp_path))
    assert run.metrics["iou"].mean.value == pytest.approx(0.66)
    assert run.metrics["iou"].difference.value == pytest.approx(-0.5 / 4)
    assert run.notes == ("compared with the unmerged run on 3 images that both have",)


def test_other_prompts_are_not_compared(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "unmerged", lambda rows: [*rows[:-1], {**rows[-1], "box": "9 9 12 12"}])
    run = merged(summarise(tmp_path))
    assert run.metrics["iou"].difference.value == pytest.approx(-0.5 / 4)
    assert "not compared, objects or prompts differ: d" in run.notes


def test_an_unfinished_run_and_one_without_rows_are_said(tmp_path) -> None:
    two_runs(tmp_path)
    facts = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    facts["runs"][0]["complete"] = False
    facts["runs"].append(run_facts("tome-r0.50", "tome", 0.5, complete=False))
    write_facts(tmp_path, facts["runs"])
    _, unfinished, absent = summarise(tmp_path).runs
    assert unfinished.notes == ("unfinished: 4 of 4 images; run `evaluate` again",)
    assert absent.notes == ("no rows: this run has not started",) and not absent.metrics


def test_a_folder_without_baseline_has_means_and_no_differences(tmp_path) -> None:
    two_runs(tmp_path)
    write_facts(tmp_path, [run_facts("structsam-r0.50", "structsam", 0.5)])
    summary = summarise(tmp_path)
    (run,) = summary.runs
    assert summary.baseline is None and "no unmerged run" in summary.notes[0]
    assert run.metrics["iou"].difference is None and run.disagreement is None
    assert run.metrics["iou"].mean.value == pytest.approx(0.66)


def test_the_baseline_is_the_plain_one() -> None:
    engine = run_facts("engine", backend="tensorrt", precision="fp16")
    plain, other = run_facts("plain"), run_facts("tome", "tome", 0.5)
    assert find_baseline([other, engine, plain]) is plain
    assert find_baseline([other, engine]) is engine
    assert find_baseline([other]) is None


def test_few_images_are_said(tmp_path) -> None:
    summary = summarise(two_runs(tmp_path))
    assert "Fewer than 6 images: differences may be luck, so none is judged." in summary.notes
    assert merged(summary).metrics["iou"].verdict == "not tested"
    truth = square(5, 5, 10, 10)
    write_rows(tmp_path, "unmerged", [row_of(str(i), "1", 1, truth, truth) for i in range(19)])
    write_facts(tmp_path, [run_facts("unmerged")])
    assert "Fewer than 20 images: the intervals are too narrow." in summarise(tmp_path).notes


def test_one_image_has_no_interval_and_it_is_said(tmp_path) -> None:
    two_runs(tmp_path)
    for name in ("unmerged", "structsam-r0.50"):
        change(tmp_path, name, lambda rows: rows[:2])
    summary = summarise(tmp_path)
    iou = merged(summary).metrics["iou"]
    assert iou.mean.low is None and iou.difference.value == pytest.approx(-0.25)
    assert iou.verdict == "not tested"
    assert "One image only: there is no interval." in summary.notes


def test_crowds_are_in_no_mean(tmp_path) -> None:
    two_runs(tmp_path)
    for name in ("unmerged", "structsam-r0.50"):
        change(tmp_path, name, lambda rows: [*rows[:-1], {**rows[-1], "crowd": "1"}])
    run = merged(summarise(tmp_path))
    assert run.masks == 4 and run.metrics["iou"].missing == 0
    assert run.metrics["iou"].mean.value == pytest.approx((1 + 0.5 + 0.8 + 0.6) / 4)
    assert run.disagreement.masks == 4
    assert "1 crowd regions, for average precision only" in run.notes


def test_two_empty_masks_agree(tmp_path) -> None:
    truth, nothing = square(5, 5, 10, 10), square(0, 0, 0, 0)
    for name, masks in {"unmerged": [nothing, truth], "tome": [nothing, nothing]}.items():
        rows = [row_of(str(i), "1", 1, truth, mask) for i, mask in enumerate(masks)]
        write_rows(tmp_path, name, rows)
    write_facts(tmp_path, [run_facts("unmerged"), run_facts("tome", "tome", 0.5)])
    assert merged(summarise(tmp_path)).disagreement.value == 0.5


def test_average_precision_where_masks_have_categories(tmp_path) -> None:
    """Two cats found exactly, one dog missed: AP 1 and 0, mean 0.5."""
    truth, far = square(5, 5, 10, 10), square(40, 20, 10, 10)
    rows = [
        row_of("a", "1", 1, truth, truth, category="cat"),
        row_of("b", "1", 1, truth, truth, category="cat"),
        row_of("c", "1", 1, truth, far, category="dog"),
    ]
    write_rows(tmp_path, "unmerged", rows)
    write_facts(tmp_path, [run_facts("unmerged")])
    summary = summarise(tmp_path)
    (run,) = summary.runs
    assert run.set_metrics["AP"] == pytest.approx(0.5)
    assert math.isnan(run.set_metrics["APl"])
    assert any("Average precision" in note for note in summary.notes)
    assert summarise(tmp_path, from_masks=False).runs[0].set_metrics == {}
    assert summary.to_dict()["runs"][0]["set_metrics"]["APl"] is None


def test_a_crowd_is_neither_right_nor_wrong_in_average_precision(tmp_path) -> None:
    """A small mask inside a large crowd matches it; as an object it would be missed."""
    truth, crowd = square(5, 5, 10, 10), square(20, 0, 40, 40)
    rows = [
        row_of("a", "1", 2, truth, truth, category="cat"),
        row_of("a", "2", 2, crowd, square(30, 10, 5, 5), category="cat", crowd=1),
    ]
    write_rows(tmp_path, "unmerged", rows)
    write_facts(tmp_path, [run_facts("unmerged")])
    assert summarise(tmp_path).runs[0].set_metrics["AP"] == pytest.approx(1)


def test_groups(tmp_path) -> None:
    big = square(0, 0, 60, 40)  # 2400 pixels: medium; the others have 100
    rows = [
        row_of("a", "1", 2, square(5, 5, 10, 10), square(5, 5, 5, 10), category="cat"),
        row_of("a", "2", 2, big, square(0, 0, 30, 40), category="dog"),
        row_of("b", "1", 1, square(5, 5, 10, 10), square(5, 5, 8, 10), category=""),
    ]
    write_rows(tmp_path, "unmerged", rows)
    write_facts(tmp_path, [run_facts("unmerged")])
    sizes = summarise(tmp_path, by="size", from_masks=False).runs[0].metrics["iou"].groups
    assert {name: round(e.value, 6) for name, e in sizes.items()} == {"small": 0.65, "medium": 0.5}
    assert sizes["small"].images == 2 and sizes["medium"].low is None
    kinds = summarise(tmp_path, by="category", from_masks=False).runs[0].metrics["iou"].groups
    assert {name: round(e.value, 6) for name, e in kinds.items()} == {
        "cat": 0.5, "dog": 0.5, "without category": 0.8
    }  # fmt: skip


def test_problems_are_counted_and_named(tmp_path) -> None:
    problems = [{"image_id": f"x{i}", "kind": "too small", "detail": ""} for i in range(7)]
    problems.append({"image_id": "y", "kind": "unreadable", "detail": "damaged"})
    summary = summarise(two_runs(tmp_path, problems=problems))
    assert summary.problems == {"too small": 7, "unreadable": 1}
    assert summary.problem_lines() == [
        "too small: 7 (x0, x1, x2, x3, x4 and 2 more)",
        "unreadable: 1 (y)",
    ]
    assert named([]) == ""


def test_it_is_json_and_the_same_every_time(tmp_path) -> None:
    two_runs(tmp_path)
    write_times(tmp_path, "unmerged", [])
    change(tmp_path, "unmerged", lambda rows: [{**row, "iou": ""} for row in rows])
    first, second = (json.dumps(summarise(tmp_path).to_dict(), allow_nan=False) for _ in "ab")
    assert first == second
    told = json.loads(first)
    assert told["runs"][0]["metrics"]["iou"]["mean"]["value"] is None
    assert told["runs"][0]["latency"] is None and told["runs"][0]["name"] == "unmerged"
    assert told["protocol"]["prompt"] == "box" and told["rules"]


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "a\\b", "C:x", "..", ""])
def test_a_run_is_never_read_or_written_elsewhere(tmp_path, name) -> None:
    """Its name comes from a bundle's manifest, or from the record."""
    folder = tmp_path / "out" / "deep"
    with pytest.raises(UserError, match="is no name for a run"):
        RunFiles(folder, name, ["iou"])
    for read in (read_rows, read_latency):
        with pytest.raises(UserError, match="is no name for a run"):
            read(folder, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["unmerged", "structsam-r0.50"])
def test_run_lengths_stay_in_the_file(tmp_path, run) -> None:
    rows = read_rows(two_runs(tmp_path), run)
    assert len(rows.rle) == len(rows.truth_rle) == 0
    summary = summarise(tmp_path, from_masks=False)
    assert merged(summary).disagreement is None
    assert merged(summary).metrics["iou"].difference.value == pytest.approx(-0.22)

    rows = read_rows(tmp_path, run, with_rle=True)
    with (tmp_path / "rows" / f"{run}.csv").open(newline="", encoding="utf-8") as stream:
        cells = [(row["rle"], row["truth_rle"]) for row in csv.DictReader(stream)]
    assert list(zip(rows.rle, rows.truth_rle, strict=True)) == cells
    assert rows.rle[-1] == cells[-1][0] and rows.rle[1:3] == [cells[1][0], cells[2][0]]


def test_lines_are_found_behind_names_of_many_bytes_and_broken_images(tmp_path) -> None:
    truth = square(10, 10, 10, 10)
    found = [square(10, 10, 10 - i, 10) for i in range(4)]
    rows = [
        row_of("Ä, \u6f22\u5b57", "1", 1, truth, found[0]),
        row_of("half", "1", 2, truth, found[1]),  # its second mask is missing
        row_of("b", "1", 1, truth, found[2]),
        row_of("c", "1", 1, truth, found[3]),
    ]
    write_rows(tmp_path, "unmerged", rows)
    kept = read_rows(tmp_path, "unmerged", with_rle=True)
    assert kept.image_ids == ["Ä, \u6f22\u5b57", "b", "c"] and kept.partial == ["half"]
    assert list(kept.rle) == [rle(found[i]) for i in (0, 2, 3)]


def test_masks_of_many_images_fill_no_memory(tmp_path) -> None:
    """Two runs of 1,500 long masks, 6 MB of run lengths each, within a few MB."""
    long = "0" * 4000
    truth = square(10, 10, 10, 10)
    for name in ("unmerged", "structsam-r0.50"):
        row = row_of("", "1", 1, truth, truth, truth_rle=long, rle=rle(truth))
        write_rows(tmp_path, name, [{**row, "image_id": f"i{n}"} for n in range(1500)])
    runs = [run_facts("structsam-r0.50", "structsam", 0.5), run_facts("unmerged")]
    write_facts(tmp_path, runs)
    assert (tmp_path / "rows" / "unmerged.csv").stat().st_size > 6_000_000
    tracemalloc.start()
    try:
        summary = summarise(tmp_path, resamples=10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert merged(summary).disagreement.value == 0
    assert peak < 5_000_000


def test_random_weights_are_known(tmp_path) -> None:
    assert not summarise(two_runs(tmp_path)).random_weights
    two_runs(tmp_path, model={"name": "vit_t", "weights": "random", "sha256": None})
    assert summarise(tmp_path).random_weights


def test_long_run_lengths_can_be_read(tmp_path, rng) -> None:
    """A noisy mask's text is longer than csv's limit of 128 KiB."""
    noise = rng.random((600, 600)) > 0.5
    write_rows(tmp_path, "unmerged", [row_of("a", "1", 1, noise, noise)])
    rows = read_rows(tmp_path, "unmerged", with_rle=True)
    assert len(rows.rle[0]) > 131_072
    assert np.array_equal(rows.image, [0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "evaluation.json").unlink(), "is no results folder"),
        (lambda f: (f / "evaluation.json").write_text("{"), "cannot be read"),
        (lambda f: write_facts(f, [run_facts("unmerged")], format=2), "has format 2, expected 1"),
        (lambda f: write_facts(f, []), "names no run"),
        (lambda f: write_facts(f, [run_facts("unmerged")], protocol=None), "has no 'protocol'"),
        (lambda f: (f / "evaluation.json").write_text("[]"), "has format None"),
    ],
)
def test_what_is_no_results_folder_is_refused(tmp_path, damage, message) -> None:
    two_runs(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        summarise(tmp_path)


def test_rows_of_another_version_are_refused(tmp_path) -> None:
    path = two_runs(tmp_path) / "rows" / "unmerged.csv"
    path.write_text(path.read_text("utf-8").replace("truth_rle", "truth"), "utf-8")
    with pytest.raises(UserError, match="no column truth_rle"):
        summarise(tmp_path)


def test_a_damaged_mask_is_named(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "unmerged", lambda rows: [rows[0], {**rows[1], "rle": "1"}, *rows[2:]])
    with pytest.raises(UserError, match="image a: the mask's runs cover 1 pixels"):
        summarise(tmp_path)


def test_a_cell_that_is_no_number_is_named(tmp_path) -> None:
    two_runs(tmp_path)
    change(tmp_path, "unmerged", lambda rows: [rows[0], {**rows[1], "iou": "good"}, *rows[2:]])
    with pytest.raises(UserError, match="line 3: 'good' is no number"):
        summarise(tmp_path)
    change(tmp_path, "unmerged", lambda rows: [{**rows[0], "iou": "1", "height": "nan"}])
    with pytest.raises(UserError, match="line 2: 'nan' is no whole number"):
        summarise(tmp_path)
