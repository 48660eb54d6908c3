"""The rules of the public sets: HQ-SAM's, Cityscapes, ADE20K, INbreast; and what they need."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from structsam.errors import UserError
from structsam.evaluation.datasets import open_dataset
from structsam.evaluation.datasets.inbreast import fill_outline, medsam_grey
from structsam.evaluation.sample import ProblemError
from tests.structsam.evaluation.dataset_fixtures import (
    HEIGHT,
    WIDTH,
    A,
    B,
    C,
    labelled,
    make_ade20k,
    make_cityscapes,
    make_coco,
    make_dis_te,
    make_dis_vd,
    make_hrsod,
    make_inbreast,
    make_parsing,
    photo,
    save,
)
from tests.structsam.evaluation.inbreast_files import outline, write_dicom, write_outlines

FIRST, SECOND = "000000000139", "000000000632"


# HQ-SAM's folders


def test_hqsam_sets_open_at_their_own_folder(tmp_path: Path) -> None:
    tiny = make_dis_vd(tmp_path)
    direct = open_dataset("dis5k-vd", tmp_path / "DIS5K/DIS-VD")
    assert list(direct.image_ids) == sorted(tiny.truth)
    make_hrsod(tmp_path)
    assert open_dataset("hrsod", tmp_path / "thin_object_detection/HRSOD").image_ids == ["a", "b"]


def test_another_set_of_the_same_layout_is_not_mistaken(tmp_path: Path) -> None:
    make_dis_te(tmp_path)
    make_dis_vd(tmp_path)
    with pytest.raises(UserError, match="not the root of the dataset 'dis5k-vd'"):
        open_dataset("dis5k-vd", tmp_path / "DIS5K/DIS-TE1")


def test_the_parts_of_dis5k_te_keep_their_names(tmp_path: Path) -> None:
    make_dis_te(tmp_path)
    everything = [f"DIS-TE{n}/{name}" for n in (1, 2, 3, 4) for name in ("a", "b")]
    for root in (tmp_path, tmp_path / "DIS5K"):
        assert open_dataset("dis5k-te", root).image_ids == everything
    part = open_dataset("dis5k-te", tmp_path / "DIS5K/DIS-TE3")
    assert part.image_ids == ["DIS-TE3/a", "DIS-TE3/b"]


def test_a_part_of_dis5k_te_that_is_missing_is_named(tmp_path: Path) -> None:
    make_dis_te(tmp_path)
    (tmp_path / "DIS5K/DIS-TE3").rename(tmp_path / "DIS5K/TE3")
    with pytest.raises(UserError, match="it has no DIS5K/DIS-TE3/im/ and no DIS5K/DIS-TE3/gt/"):
        open_dataset("dis5k-te", tmp_path)


def test_a_matte_without_a_pixel_above_128_is_an_empty_mask(tmp_path: Path) -> None:
    tiny = make_hrsod(tmp_path)
    save(np.full((HEIGHT, WIDTH), 128, np.uint8), tiny.masks["a"])
    with pytest.raises(ProblemError) as caught:
        open_dataset("hrsod", tmp_path).load("a")
    assert caught.value.problem.kind == "empty mask"


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA"])
def test_mattes_of_other_modes(mode: str, tmp_path: Path) -> None:
    tiny = make_hrsod(tmp_path)
    Image.fromarray(A.astype(np.uint8) * 255).convert(mode).save(tiny.masks["a"])
    (found,) = open_dataset("hrsod", tmp_path).load("a").objects
    assert np.array_equal(found.mask, A)


# Cityscapes


def test_groups_are_left_out_and_counted(tmp_path: Path) -> None:
    tiny = make_cityscapes(tmp_path)
    name = "frankfurt_000000_000294"
    save(labelled([(26, A), (26001, B), (24, C)], "uint16"), tiny.masks[name])
    sample = open_dataset("cityscapes", tmp_path).load(name)
    assert [(o.object_id, o.category) for o in sample.objects] == [("26001", "car")]
    assert [(p.kind, p.detail) for p in sample.problems] == [
        ("left out", "a group of person without instances"),
        ("left out", "a group of car without instances"),
    ]


def test_scenery_alone_is_no_object(tmp_path: Path) -> None:
    tiny = make_cityscapes(tmp_path)
    name = "frankfurt_000000_000294"
    save(labelled([(23, A), (7, B)], "uint16"), tiny.masks[name])
    with pytest.raises(ProblemError) as caught:
        open_dataset("cityscapes", tmp_path).load(name)
    assert caught.value.problem.kind == "no object"


# ADE20K


def test_names_of_ade20k_may_be_missing_but_not_damaged(tmp_path: Path) -> None:
    tiny = make_ade20k(tmp_path)
    name = "ADE_val_00000001"
    path = tiny.images[name].with_suffix(".json")
    latin = path.read_text().replace("traffic light", "caf\u00e9\t").encode("latin-1")
    path.write_bytes(latin)
    dataset = open_dataset("ade20k", tmp_path)
    assert "caf\u00e9\t" in [o.category for o in dataset.load(name).objects]
    path.write_text('{"annotation": {}}')
    with pytest.raises(ProblemError, match="unreadable: ADE_val_00000001.json"):
        dataset.load(name)
    path.unlink()
    assert [o.category for o in dataset.load(name).objects] == ["class 401"] + ["class 2836"] * 2


def test_two_scenes_with_the_same_name_are_counted(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    photo(tmp_path / "images/ADE/validation/other/ADE_val_00000001.jpg")
    dataset = open_dataset("ade20k", tmp_path)
    assert [(p.image_id, p.kind) for p in dataset.listing_problems] == [
        ("ADE_val_00000001", "missing partner")
    ]
    assert len(dataset.load("ADE_val_00000001").objects) == 3


def test_scene_parsing_without_names(tmp_path: Path) -> None:
    make_parsing(tmp_path)
    (tmp_path / "objectInfo150.txt").unlink()
    objects = open_dataset("ade20k", tmp_path).load("ADE_val_00000001").objects
    assert [o.category for o in objects] == ["class 1", "class 1", "class 150"]


# INbreast


def test_points_and_other_findings_are_left_out_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    tiny = make_inbreast(tmp_path)
    point = ["(3.5, 4.5)"]
    findings = [
        ("Calcification", point),
        ("Cluster", point),
        ("Mass", outline(A)),
        ("Cluster", point * 2),
        ("Calcification", point),
        ("", outline(B)),
        ("Spiculated Region", outline(C)),
        ("MASS", outline(C)),
    ]
    write_outlines(tiny.masks["20586908"], findings)
    sample = open_dataset("inbreast", tmp_path).load("20586908")
    assert [(o.object_id, o.category) for o in sample.objects] == [("3", "mass"), ("8", "mass")]
    assert [(p.kind, p.detail) for p in sample.problems] == [
        (
            "left out",
            "2 Calcification, 2 Cluster of single points, 1 Spiculated Region, 1 unnamed",
        )
    ]


def test_an_image_with_points_alone_keeps_its_problems(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    tiny = make_inbreast(tmp_path)
    write_outlines(tiny.masks["20586908"], [("Cluster", ["(3.5, 4.5)"])])
    sample = open_dataset("inbreast", tmp_path).load("20586908")
    assert [p.kind for p in sample.problems] == ["left out", "no object"]
    write_outlines(tiny.masks["20586908"], [])
    with pytest.raises(ProblemError, match="no object"):
        open_dataset("inbreast", tmp_path).load("20586908")


def test_grey_values_follow_medsams_rule() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4000, (40, 50)).astype(np.uint16)
    pixels[:, :20] = 0
    pixels[0, 30] = 16000  # beyond the 99.5th percentile
    shown = sorted(int(v) for v in pixels.ravel() if v > 0)

    def percentile(share: float) -> float:
        place = share * (len(shown) - 1)
        below = int(place)
        above = min(below + 1, len(shown) - 1)
        return shown[below] + (place - below) * (shown[above] - shown[below])

    low, high = percentile(0.005), percentile(0.995)
    # the background is clipped to `low` as well, so the least value is `low`
    for y, x in ((0, 0), (0, 30), (5, 25), (20, 49), (39, 21)):
        value = int(pixels[y, x])
        inside = min(max(value, low), high)
        expected = 0 if value == 0 else int((inside - low) / (high - low) * 255)
        assert medsam_grey(pixels)[y, x] == expected, (y, x)
    assert medsam_grey(pixels).dtype == np.uint8 and medsam_grey(pixels)[0, 30] == 255


@pytest.mark.parametrize("value", [0, 900])
def test_grey_values_without_contrast(value: int) -> None:
    assert not medsam_grey(np.full((3, 4), value, np.uint16)).any()


def test_dicom_images_reach_the_sample_as_grey(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    tiny = make_inbreast(tmp_path)
    pixels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 80
    name = "20586908"
    for kind, seen in (("MONOCHROME2", pixels), ("MONOCHROME1", pixels.max() - pixels)):
        write_dicom(tiny.images[name], pixels, kind)
        image = open_dataset("inbreast", tmp_path).load(name).image
        assert np.array_equal(image, np.stack([medsam_grey(seen)] * 3, axis=2)), kind


def test_two_scans_of_one_number_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    make_inbreast(tmp_path)
    write_dicom(tmp_path / "AllDICOMs/20586908_zzz.dcm", np.ones((HEIGHT, WIDTH)))
    problems = open_dataset("inbreast", tmp_path).listing_problems
    assert [(p.image_id, p.kind) for p in problems] == [("20586908", "missing partner")]


triangles = st.lists(
    st.tuples(st.floats(-3, 23, width=32), st.floats(-3, 18, width=32)), min_size=3, max_size=3
)


@settings(max_examples=60)
@given(triangles)
def test_outlines_are_filled(points: list[tuple[float, float]]) -> None:
    """Pixels well inside are in, pixels well outside are out; a pixel and a half may go either."""
    height, width = 15, 20
    mask = fill_outline(points, height, width)
    for y in range(height):
        for x in range(width):
            distance = signed_distance((x, y), points)
            if abs(distance) > 1.5:
                assert mask[y, x] == (distance < 0), (x, y, distance)


def signed_distance(p: tuple[float, float], corners: list[tuple[float, float]]) -> float:
    """Distance of a point to a triangle's border, negative inside."""
    nearest, turns = np.inf, []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = bx - ax, by - ay
        length = dx * dx + dy * dy
        t = 0.0 if length == 0 else ((p[0] - ax) * dx + (p[1] - ay) * dy) / length
        t = min(max(t, 0.0), 1.0)
        nearest = min(nearest, float(np.hypot(p[0] - ax - t * dx, p[1] - ay - t * dy)))
        turns.append(dx * (p[1] - ay) - dy * (p[0] - ax))
    inside = all(t > 0 for t in turns) or all(t < 0 for t in turns)
    return -nearest if inside else nearest


# Missing libraries


@pytest.mark.parametrize(
    ("dataset", "library"), [("coco", "pycocotools"), ("inbreast", "pydicom"), ("ade20k", "scipy")]
)
def test_a_missing_library_is_named(
    dataset: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dataset == "inbreast":
        pytest.importorskip("pydicom")
    {"coco": make_coco, "inbreast": make_inbreast, "ade20k": make_parsing}[dataset](tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    genuine = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(f"no {library} in this test")
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=rf"{library}.*structsam\[eval\]"):
        opened = open_dataset(dataset, tmp_path)
        opened.load(opened.image_ids[0])
