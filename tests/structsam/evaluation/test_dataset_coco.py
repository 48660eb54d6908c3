"""COCO: annotated masks, and a detector's boxes matched with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from structsam.errors import UserError
from structsam.evaluation.datasets import open_dataset
from structsam.evaluation.datasets.coco_json import Instance, draw
from structsam.evaluation.datasets.detector_boxes import DetectedBox, match
from structsam.evaluation.mask_rle import encode
from structsam.evaluation.sample import ProblemError, Sample
from tests.structsam.evaluation.dataset_fixtures import (
    HEIGHT,
    WIDTH,
    A,
    B,
    C,
    annotation,
    bbox,
    make_coco,
    rectangle,
    runs,
    write_coco,
)

FIRST, SECOND = "000000000139", "000000000632"


def corners(mask: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = bbox(mask)
    return x, y, x + width, y + height


# Annotated objects


def test_annotated_boxes_come_with_the_objects_and_crowds_are_not_prompted(tmp_path: Path) -> None:
    make_coco(tmp_path)
    sample = open_dataset("coco", tmp_path).load(FIRST)
    assert [(o.object_id, o.box, o.crowd, o.prompted) for o in sample.objects] == [
        ("120", corners(A), False, True),
        ("230", corners(C), False, True),
        ("900100", None, True, False),
    ]


def test_crowds_come_last_whatever_their_number(tmp_path: Path) -> None:
    make_coco(tmp_path)
    crowd = annotation(1, 632, 1, B, iscrowd=1)
    rows = [crowd, annotation(3, 632, 1, C), annotation(2, 632, 1, A)]
    write_coco(tmp_path, {632: f"{SECOND}.jpg"}, rows)
    sample = open_dataset("coco", tmp_path).load(SECOND)
    assert [o.object_id for o in sample.objects] == ["2", "3", "1"]


def test_images_in_a_folder_of_images(tmp_path: Path) -> None:
    make_coco(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images/val2017")
    assert open_dataset("coco", tmp_path).image_ids == [FIRST, SECOND]


def detections(root: Path, rows: list[tuple[int, int, list[float], float]]) -> Path:
    keys = ("image_id", "category_id", "bbox", "score")
    path = root / "boxes.json"
    path.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    return path


def shown(sample: Sample) -> list[tuple[str, str, float, bool, str]]:
    """Id, class, score, prompted, and which rectangle the mask is."""
    names = {m.tobytes(): n for m, n in ((A, "A"), (B, "B"), (C, "C"), (A & False, "-"))}
    return [
        (o.object_id, o.category, o.score, o.prompted, names[o.mask.tobytes()])
        for o in sample.objects
    ]


def test_every_annotated_object_appears_once_beside_the_detections(tmp_path: Path) -> None:
    make_coco(tmp_path)
    near = bbox(rectangle(1, 3, 6, 9))  # IoU with A: 30 of 35
    boxes = detections(
        tmp_path,
        [
            (139, 1, near, 0.5),
            (139, 1, bbox(A), 0.25),  # A is taken
            (139, 18, bbox(A), 0.75),  # another class
            (139, 1, bbox(B), 0.125),  # only a crowd is there
            (632, 18, bbox(B), 0.9),
            (4, 18, bbox(B), 0.9),
        ],
    )
    dataset = open_dataset("coco", tmp_path, boxes=boxes)
    first = dataset.load(FIRST)
    assert shown(first) == [
        ("detection-1", "dog", 0.75, True, "-"),
        ("detection-2", "person", 0.5, True, "A"),
        ("detection-3", "person", 0.25, True, "-"),
        ("detection-4", "person", 0.125, True, "-"),
        ("230", "dog", None, False, "C"),
        ("900100", "person", None, False, "B"),
    ]
    assert first.objects[1].box == (3.0, 1.0, 9.0, 6.0)
    assert [o.crowd for o in first.objects] == [False] * 5 + [True]
    assert shown(dataset.load(SECOND)) == [("detection-1", "dog", 0.9, True, "B")]
    assert [(p.image_id, p.kind) for p in dataset.listing_problems] == [("4", "missing partner")]


def test_images_with_detections_alone_and_with_annotations_alone(tmp_path: Path) -> None:
    make_coco(tmp_path)
    write_coco(
        tmp_path,
        {139: f"{FIRST}.jpg", 632: f"{SECOND}.jpg"},
        [annotation(1, 139, 1, A)],
    )
    plain = open_dataset("coco", tmp_path)
    with pytest.raises(ProblemError) as caught:
        plain.load(SECOND)
    assert caught.value.problem.kind == "no object"
    boxes = detections(tmp_path, [(632, 1, bbox(A), 0.5)])
    detected = open_dataset("coco", tmp_path, boxes=boxes)
    assert shown(detected.load(SECOND)) == [("detection-1", "person", 0.5, True, "-")]
    assert shown(detected.load(FIRST)) == [("1", "person", None, False, "A")]


def test_boxes_without_area_are_counted(tmp_path: Path) -> None:
    make_coco(tmp_path)
    boxes = detections(tmp_path, [(632, 18, [3, 4, 0, 5], 0.5), (632, 18, bbox(B), 0.25)])
    sample = open_dataset("coco", tmp_path, boxes=boxes).load(SECOND)
    assert shown(sample) == [("detection-1", "dog", 0.25, True, "B")]
    assert [p.kind for p in sample.problems] == ["left out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ('{"annotations": []}', "does not hold COCO detections: .*not a list"),
        ('[{"image_id": 1}]', "KeyError 'bbox'"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2], "score": 1}]', "does not hold"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1,2,3,4], "score": NaN}]', "not finite"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1,2,3,Infinity], "score": 1}]', "not finite"),
        ('[{"image_id": 1, "category_id": 0, "bbox": [1,2,3,4], "score": 1}]', r"lack: \[0\]"),
    ],
)
def test_boxes_of_another_format_are_refused(content: str, message: str, tmp_path: Path) -> None:
    make_coco(tmp_path)
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_dataset("coco", tmp_path, boxes=str(tmp_path / "boxes.json"))


def test_boxes_that_are_not_there(tmp_path: Path) -> None:
    make_coco(tmp_path)
    with pytest.raises(UserError, match="cannot read .*none.json"):
        open_dataset("coco", tmp_path, boxes=tmp_path / "none.json")


def box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


sides = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5))
things = st.lists(st.tuples(sides, st.integers(1, 2), st.booleans()), max_size=6)


@settings(max_examples=100)
@given(things, things)
def test_matching_is_greedy_one_to_one(detected: list[Any], annotated: list[Any]) -> None:
    def box(s: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        return float(s[0]), float(s[1]), float(s[0] + s[2]), float(s[1] + s[3])

    boxes = [DetectedBox(c, box(s), 0.5) for s, c, _ in detected]
    instances = [Instance(i, c, box(s), crowd, []) for i, (s, c, crowd) in enumerate(annotated)]
    free, expected = list(range(len(instances))), []
    for each in boxes:
        rivals = [
            (box_iou(each.box, instances[i].box), -i)
            for i in free
            if instances[i].category == each.category and not instances[i].crowd
        ]
        best, index = max(rivals, default=(0.0, 0))
        expected.append(-index if best >= 0.5 else None)
        if best >= 0.5:
            free.remove(-index)
    assert match(boxes, instances) == expected


bool_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


@settings(max_examples=60)
@given(bool_masks)
def test_run_lengths_of_both_kinds_give_the_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    for counts in (np.array(runs(mask)), encode(mask)):
        shape = {"size": [height, width], "counts": counts}
        found = draw(Instance(1, 1, (0, 0, 1, 1), False, shape), height, width)
        assert found.dtype == bool and np.array_equal(found, mask)


def test_an_object_of_two_polygons_is_both(tmp_path: Path) -> None:
    make_coco(tmp_path)
    both = [*annotation(1, 632, 1, A)["segmentation"], *annotation(1, 632, 1, C)["segmentation"]]
    write_coco(tmp_path, {632: f"{SECOND}.jpg"}, [annotation(1, 632, 1, A | C, segmentation=both)])
    sample = open_dataset("coco", tmp_path).load(SECOND)
    assert np.array_equal(sample.objects[0].mask, A | C)


def test_annotations_without_a_mask_are_counted(tmp_path: Path) -> None:
    make_coco(tmp_path)
    size = [HEIGHT, WIDTH]
    wrong: list[Any] = [
        [[2, 2, 3, 3]],  # pycocotools would take it for a box
        [],
        {"size": size, "counts": [0, HEIGHT * WIDTH - 1]},
        {"size": [WIDTH, HEIGHT], "counts": runs(A)},
        {"size": size, "counts": "13"},
        {"size": size, "counts": [-1, HEIGHT * WIDTH + 1]},
    ]
    annotations = [annotation(n, 632, 1, A, segmentation=s) for n, s in enumerate(wrong, start=1)]
    write_coco(tmp_path, {632: f"{SECOND}.jpg"}, [*annotations, annotation(9, 632, 1, A)])
    sample = open_dataset("coco", tmp_path).load(SECOND)
    assert [o.object_id for o in sample.objects] == ["9"]
    kinds = ["empty mask"] * 2 + ["unreadable"] * 4
    assert [p.kind for p in sample.problems] == kinds
    assert [f"annotation {n}" in p.detail for n, p in enumerate(sample.problems, 1)] == [True] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "no COCO instances file"),
        ({"images": [{"id": 1}]}, "KeyError 'file_name'"),
        ({"categories": []}, "category_id 1 is not among the categories"),
    ],
)
def test_another_json_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        open_dataset("coco", tmp_path)
    path.write_text("<html>")
    with pytest.raises(UserError, match="cannot read"):
        open_dataset("coco", tmp_path)


def test_masks_are_read_as_pycocotools_reads_them(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    make_coco(tmp_path)
    slanted = [[1.5, 2.25, 13.0, 4.5, 9.75, 10.5, 2.0, 8.0]]
    write_coco(tmp_path, {632: f"{SECOND}.jpg"}, [annotation(1, 632, 1, A, segmentation=slanted)])
    coco = COCO(str(tmp_path / "annotations/instances_val2017.json"))
    expected = coco.annToMask(coco.loadAnns([1])[0]).astype(bool)
    assert 30 < expected.sum() < 100
    mask = open_dataset("coco", tmp_path).load(SECOND).objects[0].mask
    assert np.array_equal(mask, expected)
