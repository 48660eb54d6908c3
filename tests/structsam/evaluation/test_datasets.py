"""What every dataset promises, on a tiny set of each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam.evaluation.datasets import DATASETS, find_dataset, open_dataset
from structsam.evaluation.protocols import find_protocol
from structsam.evaluation.sample import ProblemError, Sample
from tests.structsam.evaluation.dataset_fixtures import (
    HEIGHT,
    MAKERS,
    WIDTH,
    TinySet,
    make_parsing,
    photo,
)
from tests.structsam.evaluation.inbreast_files import write_dicom

VARIANTS: dict[str, tuple[str, Callable[[Path], TinySet]]] = {
    **{name: (name, make) for name, make in MAKERS.items()},
    "ade20k (parsing)": ("ade20k", make_parsing),
}
NAMES = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def _libraries(request: pytest.FixtureRequest) -> None:
    variant = getattr(request.node, "callspec", None)
    if variant and variant.params.get("variant") == "inbreast":
        pytest.importorskip("pydicom")


def make(variant: str, root: Path) -> tuple[str, TinySet]:
    name, maker = VARIANTS[variant]
    return name, maker(root)


def same(first: Sample, second: Sample) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and [o.object_id for o in first.objects] == [o.object_id for o in second.objects]
        and all(
            np.array_equal(a.mask, b.mask)
            for a, b in zip(first.objects, second.objects, strict=True)
        )
        and first.problems == second.problems
    )


def test_every_dataset_has_a_tiny_set() -> None:
    assert set(MAKERS) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_facts_of_a_class(name: str) -> None:
    dataset = find_dataset(name)
    assert dataset.name == name
    assert dataset.title and dataset.layout and dataset.__doc__
    assert find_protocol(dataset.protocol)
    hqsam = {"dis5k-vd", "dis5k-te", "thinobject5k-te", "coift", "hrsod"}
    expected = "hqsam" if name in hqsam else "medsam" if name == "inbreast" else "sam"
    assert dataset.protocol == expected


@NAMES
def test_names_are_sorted_and_unique(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert list(dataset.image_ids) == sorted(tiny.truth)
    assert dataset.listing_problems == []


@NAMES
def test_objects_are_those_that_were_drawn(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    dataset = open_dataset(name, str(tmp_path))
    for image_id, truth in tiny.truth.items():
        sample = dataset.load(image_id)
        assert sample.image_id == image_id
        assert sample.image.dtype == np.uint8 and sample.image.shape == (HEIGHT, WIDTH, 3)
        assert sample.problems == () and sample.valid is None
        assert [o.object_id for o in sample.objects] == sorted(truth, key=_number)
        for each in sample.objects:
            category, mask = truth[each.object_id]
            assert each.mask.dtype == bool and each.mask.shape == (HEIGHT, WIDTH)
            assert np.array_equal(each.mask, mask), each.object_id
            assert each.category == category
            assert each.score is None


def _number(object_id: str) -> list[int]:
    return [int(part) for part in object_id.split("-")]


@NAMES
def test_loading_is_the_same_in_every_thread(variant: str, tmp_path: Path) -> None:
    name, _ = make(variant, tmp_path)
    dataset = open_dataset(name, tmp_path)
    ids = list(dataset.image_ids) * 4
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(dataset.load, ids))
    again = open_dataset(name, tmp_path)
    assert all(same(sample, again.load(i)) for i, sample in zip(ids, threaded, strict=True))


@NAMES
def test_order_does_not_come_from_the_file_system(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tiny = make(variant, tmp_path)
    listed = Path.iterdir
    for order in (False, True):
        monkeypatch.setattr(
            Path,
            "iterdir",
            lambda self, order=order: iter(sorted(listed(self), key=str, reverse=order)),
        )
        assert list(open_dataset(name, tmp_path).image_ids) == sorted(tiny.truth)


@NAMES
def test_a_wrong_root_says_what_was_expected(variant: str, tmp_path: Path) -> None:
    name, _ = VARIANTS[variant]
    empty, file = tmp_path / "empty", tmp_path / "set.zip"
    empty.mkdir()
    file.write_bytes(b"PK")
    for root, reason in ((empty, "it has no"), (tmp_path / "none", "no such"), (file, "a file")):
        with pytest.raises(UserError) as caught:
            open_dataset(name, root)
        assert reason in str(caught.value) and str(root) in str(caught.value)
        for line in DATASETS[name].layout.splitlines():
            assert line in str(caught.value)
        assert "fits" not in str(caught.value)


@NAMES
def test_a_root_that_is_near_is_named(variant: str, tmp_path: Path) -> None:
    root = tmp_path / "far" / "outer" / "the set"
    name, tiny = make(variant, root)
    inside = next(iter(tiny.images.values())).parent
    # of a folder of sets, the folder above is a root as well
    above = [root.parent.parent] if name == "folder" else [root.parent.parent, root.parent]
    for near in (*above, inside):
        with pytest.raises(UserError) as caught:
            open_dataset(name, near)
        advice = str(caught.value).rpartition("\n")[2]
        assert advice.endswith("fits: use that."), near
        open_dataset(name, advice.removesuffix(" fits: use that."))


@NAMES
def test_an_image_without_a_mask_is_counted(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    if name == "coco":
        photo(tmp_path / "val2017" / "lone.jpg")
        lone = "lone"
    else:
        lone = sorted(tiny.truth)[0]
        tiny.masks[lone].unlink()
    dataset = open_dataset(name, tmp_path)
    assert [(p.image_id, p.kind) for p in dataset.listing_problems] == [(lone, "missing partner")]
    assert lone not in dataset.image_ids and dataset.image_ids


@NAMES
def test_a_mask_without_an_image_is_counted(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    lone = sorted(tiny.truth)[-1]
    tiny.images[lone].unlink()
    dataset = open_dataset(name, tmp_path)
    assert [(p.image_id, p.kind) for p in dataset.listing_problems] == [(lone, "missing partner")]
    assert list(dataset.image_ids) == sorted(tiny.truth)[:-1]


@NAMES
def test_no_pair_at_all_is_refused(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    for path in tiny.images.values():
        path.unlink()
    with pytest.raises(UserError) as caught:
        open_dataset(name, tmp_path)
    assert DATASETS[name].layout.splitlines()[0] in str(caught.value)


@NAMES
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files_are_named(variant: str, damage: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    dataset = open_dataset(name, tmp_path)
    first, last = sorted(tiny.truth)[0], sorted(tiny.truth)[-1]
    harmed = {first: tiny.images[first]} | ({last: tiny.masks[last]} if tiny.masks else {})
    for image_id, path in harmed.items():
        whole = path.read_bytes()
        cut = whole[: len(whole) * 2 // 3]
        path.write_bytes({"cut": cut, "empty": b"", "text": b"<html>404</html>"}[damage])
        with pytest.raises(ProblemError) as caught:
            dataset.load(image_id)
        assert caught.value.problem.kind == "unreadable"
        assert caught.value.problem.image_id == image_id
        assert path.name in caught.value.problem.detail
        assert str(tmp_path) not in caught.value.problem.detail
        path.write_bytes(whole)
        dataset.load(image_id)


@NAMES
def test_other_sizes_are_named(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    image_id = sorted(tiny.truth)[0]
    if name == "inbreast":  # outlines have no size; one beyond the image has no pixel there
        write_dicom(tiny.images[image_id], np.full((6, 10), 7))
        problems = open_dataset(name, tmp_path).load(image_id).problems
        assert [p.kind for p in problems] == ["empty mask"]
        return
    photo(tiny.images[image_id], HEIGHT + 1, WIDTH)
    with pytest.raises(ProblemError) as caught:
        open_dataset(name, tmp_path).load(image_id)
    assert caught.value.problem.kind == "sizes differ"
    assert f"{WIDTH}x{HEIGHT + 1}" in caught.value.problem.detail
    assert f"{WIDTH}x{HEIGHT}" in caught.value.problem.detail


@NAMES
def test_hidden_files_and_folders_are_not_looked_at(variant: str, tmp_path: Path) -> None:
    name, tiny = make(variant, tmp_path)
    for path in (*tiny.images.values(), *tiny.masks.values()):
        path.with_name(f"._{path.name}").write_bytes(b"of a Mac")
        path.with_name("Thumbs.db").write_bytes(b"of Windows")
        (path.parent / ".thumbnails").mkdir(exist_ok=True)
    dataset = open_dataset(name, tmp_path)
    assert list(dataset.image_ids) == sorted(tiny.truth) and dataset.listing_problems == []


@NAMES
def test_a_name_that_is_not_there(variant: str, tmp_path: Path) -> None:
    name, _ = make(variant, tmp_path)
    with pytest.raises(UserError, match="no image 'nobody'"):
        open_dataset(name, tmp_path).load("nobody")


def test_unknown_names_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dataset 'voc'.*folder, dis5k-vd, .*inbreast"):
        find_dataset("voc")
    with pytest.raises(UserError, match="'folder' has no option 'boxes'. It has no options"):
        open_dataset("folder", tmp_path, boxes="b.json")
    with pytest.raises(UserError, match="'coco' has no option 'split'. It takes: boxes"):
        open_dataset("coco", tmp_path, split="val")


#: Real images beside the checkout; where they are absent their tests are skipped.
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def readme_table() -> dict[str, tuple[int, int]]:
    rows = {}
    for line in (SHARED / "README.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[1].startswith("test/"):
            rows[cells[1].removeprefix("test/")] = (int(cells[2]), int(cells[3].replace(",", "")))
    return rows


@pytest.mark.skipif(not (SHARED / "test").is_dir(), reason="the shared data are not here")
def test_shared_data_have_the_images_and_segments_of_their_table() -> None:
    expected = readme_table()
    assert len(expected) == 6
    dataset = open_dataset("folder", SHARED / "test")
    assert dataset.listing_problems == []
    found: dict[str, list[int]] = {}
    for image_id in dataset.image_ids:
        sample = dataset.load(image_id)
        assert sample.problems == () and all(o.mask.any() for o in sample.objects)
        counts = found.setdefault(image_id.partition("/")[0], [0, 0])
        counts[0] += 1
        counts[1] += len(sample.objects)
    assert {name: tuple(counts) for name, counts in found.items()} == expected
    voc = dataset.load("voc/2007_000033")
    assert {o.category for o in voc.objects} == {"aeroplane"}
    with Image.open(SHARED / "test/voc/void/2007_000033.png") as void:
        drawn: Any = np.array(void)
    assert voc.valid is not None and np.array_equal(~voc.valid, drawn == 1)
