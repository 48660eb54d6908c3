"""Average precision: pycocotools called by hand gives the same, and a few cases by arithmetic."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.evaluation.mask_rle import encode, rle_dict
from structsam.evaluation.metrics.average_precision import AveragePrecision
from structsam.evaluation.metrics.base import Detection

pytest.importorskip("pycocotools")

COLUMNS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def square(side, left=0, size=(128, 256)):
    mask = np.zeros(size, bool)
    mask[:side, left : left + side] = True
    return rle_dict(encode(mask), size)


def a_set(seed):
    """Boxes of all sizes in 6 images and 3 classes; some missed, some invented, some crowds."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(6):
        size = (int(rng.integers(120, 160)), int(rng.integers(120, 200)))
        for _ in range(int(rng.integers(2, 8))):
            top, left, side = rng.integers(0, 90), rng.integers(0, 90), rng.integers(5, 110)
            truth, predicted = np.zeros((2, *size), bool)
            truth[top : top + side, left : left + side] = True
            shift = int(rng.integers(0, 6))
            predicted[top + shift : top + side, left : left + side + shift] = True
            kind = rng.random()
            rows.append(
                Detection(
                    f"image{image}",
                    f"class{rng.integers(3)}",
                    None if kind < 0.1 else rle_dict(encode(predicted), size),
                    float(rng.integers(1, 12)) / 12,  # with ties
                    None if 0.1 < kind < 0.3 else rle_dict(encode(truth), size),
                    crowd=bool(rng.random() < 0.15),
                    area=float(rng.choice([0, 0.9 * truth.sum()])),
                )
            )
    return rows


def by_hand(rows, max_detections=100):
    """The usual calls: truths from a dict, predictions by `loadRes`, the table of `summarize`."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths, results, images = [], [], {}
    for number, row in enumerate(rows):
        image, category = int(row.image_id[-1]) + 10, int(row.category[-1]) + 5
        height, width = (row.truth or row.predicted)["size"]
        images[image] = {"id": image, "height": height, "width": width}
        both = {"image_id": image, "category_id": category}
        if row.truth is not None:
            area = row.area or float(coco_mask.area(row.truth))
            truth = {"id": number + 1, "segmentation": dict(row.truth), "area": area}
            truths.append(both | truth | {"iscrowd": int(row.crowd)})
        if row.predicted is not None:
            results.append(both | {"segmentation": dict(row.predicted), "score": row.score})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": list(images.values()),
        "annotations": truths,
        "categories": [{"id": number} for number in (5, 6, 7)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "segm")
        evaluator.params.maxDets = sorted([1, 10, max_detections])
        evaluator.evaluate()
        evaluator.accumulate()
        if max_detections == 100:
            evaluator.summarize()
            return evaluator.stats[:6]
    precision = evaluator.eval["precision"][..., 0, 1]  # 2 of 1, 2, 10
    return [precision[precision > -1].mean()]


@pytest.mark.parametrize("seed", range(8))
def test_pycocotools_called_by_hand_gives_the_same(seed) -> None:
    rows = a_set(seed)
    expected = [math.nan if value == -1 else value for value in by_hand(rows)]
    found = AveragePrecision()(rows)
    assert list(found) == COLUMNS
    assert list(found.values()) == pytest.approx(expected, nan_ok=True)
    assert 0.1 < found["AP"] < found["AP50"] < 1


def test_the_number_of_detections_is_limited() -> None:
    rows = [replace(row, category="class0") for row in a_set(1)]
    few = AveragePrecision(max_detections=2)(rows)["AP"]
    assert few == pytest.approx(by_hand(rows, 2)[0])
    assert few != AveragePrecision()(rows)["AP"]
    with pytest.raises(UserError, match="1 or more"):
        AveragePrecision(0)


def test_one_perfect_prediction() -> None:
    for side, own in ((20, "APs"), (50, "APm"), (100, "APl")):
        found = AveragePrecision()([Detection("a", "", square(side), 1.0, square(side))])
        others = {"APs", "APm", "APl"} - {own}
        expected = [math.nan if name in others else 1.0 for name in COLUMNS]
        assert list(found.values()) == pytest.approx(expected, nan_ok=True)


def test_thresholds_by_arithmetic() -> None:
    found = AveragePrecision()([Detection("a", "", square(64), 1.0, square(80))])  # IoU 0.64
    assert [found[name] for name in COLUMNS[:3]] == pytest.approx([0.3, 1, 0])


def test_the_annotated_area_chooses_the_size() -> None:
    row = Detection("a", "", square(50), 1.0, square(50), area=9000.0)
    assert math.isnan(AveragePrecision()([row])["APs"])
    assert AveragePrecision()([row])["APm"] == pytest.approx(1)
    assert AveragePrecision()([replace(row, area=10000.0)])["APl"] == pytest.approx(1)


def test_a_prediction_inside_a_crowd_is_neither_right_nor_wrong() -> None:
    rows = [
        Detection("a", "bird", square(30, 128), 0.9, square(100, 128), crowd=True),
        Detection("a", "bird", square(60), 0.5, square(60)),
    ]
    assert AveragePrecision()(rows)["AP"] == pytest.approx(1)
    rows[0] = replace(rows[0], crowd=False)
    assert AveragePrecision()(rows)["AP"] == pytest.approx(0.5 * 51 / 101)


def test_predictions_match_whatever_object_they_cover() -> None:
    left, right = square(40), square(40, 128)
    crossed = [Detection("a", "", left, 1.0, right), Detection("a", "", right, 1.0, left)]
    assert AveragePrecision()(crossed)["AP"] == pytest.approx(1)
    apart = [replace(crossed[0], image_id="b"), crossed[1]]
    assert AveragePrecision()(apart)["AP"] == 0.0
    classes = [replace(crossed[0], category="other"), crossed[1]]
    assert AveragePrecision()(classes)["AP"] == 0.0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Detection("a", "", square(9), 1.0, None)],
        [Detection("a", "", square(9), 1.0, square(9), crowd=True)],
    ],
)
def test_nothing_to_score_is_nan(rows) -> None:
    found = AveragePrecision()(rows)
    assert list(found) == COLUMNS
    assert all(math.isnan(value) for value in found.values())


def test_missed_objects_alone_are_zero() -> None:
    found = AveragePrecision()([Detection("a", "", None, math.nan, square(9))])
    assert (found["AP"], found["APs"]) == (0.0, 0.0)
    assert math.isnan(found["APl"])


def test_counts_may_be_text_or_bytes_and_rows_stay_as_they_are() -> None:
    rle = square(9)
    text = rle | {"counts": rle["counts"].decode()}
    before = dict(rle), dict(text)
    assert AveragePrecision()([Detection("a", "", rle, 1.0, text)])["AP"] == pytest.approx(1)
    assert (rle, text) == before


def test_it_is_silent_and_writes_no_file(capfd, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    AveragePrecision()(a_set(0))
    AveragePrecision()([])
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            Detection("a", "", square(9, size=(20, 30)), 1.0, square(9, size=(30, 20))),
            "image a has masks of 20x30 and of 30x20",
        ),
        (Detection("a", "", square(9), math.nan, square(9)), "score is nan"),
        (Detection("a", "", square(9) | {"counts": b"13"}, 1.0, square(9)), "cover 4 pixels"),
        (Detection("a", "", square(9), 1.0, square(9) | {"counts": "é"}), "damaged mask"),
    ],
)
def test_what_cannot_be_compared_is_refused(row, message) -> None:
    with pytest.raises(UserError, match=message):
        AveragePrecision()([row])


def test_a_missing_pycocotools_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(UserError, match=r"pip install 'structsam\[eval\]'"):
        AveragePrecision()([])
