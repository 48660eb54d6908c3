"""What the kinds of image and mask files mean, in a folder of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from structsam.errors import UserError
from structsam.evaluation.datasets import open_dataset
from structsam.evaluation.datasets.label_maps import labels_in, object_per_label, object_per_region
from structsam.evaluation.sample import ProblemError, Sample
from tests.structsam.evaluation.dataset_fixtures import (
    HEIGHT,
    WIDTH,
    A,
    B,
    C,
    labelled,
    make_folder,
    photo,
    save,
)


def write(root: Path, mask: Image.Image | np.ndarray, image: Image.Image | None = None) -> Path:
    """A folder of one image `x`; returns the mask's path."""
    picture = root / "images/x.png"
    path = root / "masks/x.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        photo(picture)
    else:
        picture.parent.mkdir(parents=True, exist_ok=True)
        image.save(picture)
    (Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask).save(path)
    return path


def only(root: Path) -> Sample:
    dataset = open_dataset("folder", root)
    assert dataset.image_ids == ["x"]
    return dataset.load("x")


def masks_of(sample: Sample) -> dict[str, np.ndarray]:
    return {each.object_id: each.mask for each in sample.objects}


def assert_masks(sample: Sample, expected: dict[str, np.ndarray]) -> None:
    found = masks_of(sample)
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert np.array_equal(found[name], mask), name


def problem_of(root: Path) -> tuple[str, str]:
    with pytest.raises(ProblemError) as caught:
        only(root)
    assert caught.value.problem.image_id == "x"
    return caught.value.problem.kind, caught.value.problem.detail


# Values of masks


@pytest.mark.parametrize("value", [1, 7, 255])
def test_one_value_is_one_object(value: int, tmp_path: Path) -> None:
    write(tmp_path, labelled([(value, A), (value, C)]))
    assert_masks(only(tmp_path), {str(value): A | C})


def test_black_and_white_of_one_bit(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(A.astype(np.uint8) * 255).convert("1"))
    assert_masks(only(tmp_path), {"1": A})


def test_several_values_are_objects_in_order_of_the_labels(tmp_path: Path) -> None:
    write(tmp_path, labelled([(200, A), (9, B), (10, C)]))
    assert_masks(only(tmp_path), {"9": B, "10": C, "200": A})


def test_labels_of_16_bits(tmp_path: Path) -> None:
    write(tmp_path, labelled([(256, A), (512, B), (65535, C)], "uint16"))
    assert_masks(only(tmp_path), {"256": A, "512": B, "65535": C})


def palette_image(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([(17 * i) % 256 for i in range(768)])  # colours that are no labels
    return image


def test_a_palette_gives_its_indices_and_255_is_void(tmp_path: Path) -> None:
    write(tmp_path, palette_image(labelled([(3, A), (255, B), (8, C)])))
    sample = only(tmp_path)
    assert_masks(sample, {"3": A, "8": C})
    assert sample.valid is not None and np.array_equal(sample.valid, ~B)


def test_a_palette_of_255_alone_is_an_object(tmp_path: Path) -> None:
    write(tmp_path, palette_image(labelled([(255, B)])))
    sample = only(tmp_path)
    assert_masks(sample, {"255": B})
    assert sample.valid is None


def test_255_beside_other_grey_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, labelled([(3, A), (255, B)]))
    kind, detail = problem_of(tmp_path)
    assert kind == "unreadable" and "void" in detail and "soft edge" in detail


def test_255_as_the_last_of_all_labels_is_an_object(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, 32), np.uint8)
    labels.ravel()[:256] = np.arange(256)
    photo(tmp_path / "images/x.png", width=32)
    save(labels, tmp_path / "masks/x.png")
    sample = only(tmp_path)
    assert [o.object_id for o in sample.objects] == [str(n) for n in range(1, 256)]


def test_255_among_labels_of_16_bits_is_an_object(tmp_path: Path) -> None:
    write(tmp_path, labelled([(255, A), (256, B)], "uint16"))
    assert_masks(only(tmp_path), {"255": A, "256": B})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_saved_as_colour_is_labels(mode: str, tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(labelled([(3, A), (8, C)])).convert(mode))
    assert_masks(only(tmp_path), {"3": A, "8": C})


def test_colours_are_no_labels(tmp_path: Path) -> None:
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[A] = 255, 0, 0
    write(tmp_path, colours)
    kind, detail = problem_of(tmp_path)
    assert kind == "unreadable" and "coloured" in detail


def test_a_blank_mask_is_an_image_without_object(tmp_path: Path) -> None:
    write(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8))
    assert problem_of(tmp_path)[0] == "no object"


def test_void_pixels_are_not_scored(tmp_path: Path) -> None:
    write(tmp_path, palette_image(labelled([(3, A), (255, B)])))
    save(labelled([(1, C)]), tmp_path / "void/x.png")
    sample = only(tmp_path)
    assert sample.valid is not None and np.array_equal(sample.valid, ~(B | C))
    save(np.ones((HEIGHT, WIDTH + 1), np.uint8), tmp_path / "void/x.png")
    assert problem_of(tmp_path)[0] == "sizes differ"


def test_void_without_an_image_is_counted(tmp_path: Path) -> None:
    write(tmp_path, labelled([(3, A)]))
    save(labelled([(1, C)]), tmp_path / "void/y.png")
    problems = open_dataset("folder", tmp_path).listing_problems
    assert [(p.image_id, p.kind) for p in problems] == [("y", "missing partner")]


# Values of images


def gradient(dtype: str, most: int) -> np.ndarray:
    steps = np.linspace(0, most, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    return np.round(steps).astype(dtype)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = gradient("uint8", 255)
    write(tmp_path, A.astype(np.uint8), Image.fromarray(grey))
    assert np.array_equal(only(tmp_path).image, np.stack([grey] * 3, axis=2))


def test_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    deep = gradient("uint16", 65535)
    write(tmp_path, A.astype(np.uint8), Image.fromarray(deep))
    expected = np.round(deep / 257).astype(np.uint8)
    assert expected.max() == 255
    assert np.array_equal(only(tmp_path).image, np.stack([expected] * 3, axis=2))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    write(tmp_path, A.astype(np.uint8), Image.fromarray(pixels))
    assert np.array_equal(only(tmp_path).image, pixels[..., :3])


def test_palettes_of_images_are_looked_up(tmp_path: Path) -> None:
    image = palette_image(gradient("uint8", 255))
    write(tmp_path, A.astype(np.uint8), image)
    assert np.array_equal(only(tmp_path).image, np.array(image.convert("RGB")))


def turned(root: Path) -> np.ndarray:
    """A JPEG whose EXIF data ask for a quarter turn; returns its stored pixels."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images/x.jpg"
    path.parent.mkdir(parents=True)
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        assert stored.getexif()[0x0112] == 6
        return np.array(stored)


def test_the_mask_belongs_to_the_stored_pixels(tmp_path: Path) -> None:
    pixels = turned(tmp_path)
    save(labelled([(1, A)]), tmp_path / "masks/x.png")
    sample = only(tmp_path)
    assert np.array_equal(sample.image, pixels)
    assert_masks(sample, {"1": A})


def test_a_mask_of_the_turned_image_is_named(tmp_path: Path) -> None:
    turned(tmp_path)
    save(labelled([(1, A)]).T.copy(), tmp_path / "masks/x.png")
    kind, detail = problem_of(tmp_path)
    assert kind == "sizes differ" and "EXIF" in detail
    photo(tmp_path / "images/x.jpg")  # the same sizes without the tag
    assert "EXIF" not in problem_of(tmp_path)[1]


# Names


def test_names_that_are_taken_and_types_that_lose_labels_are_counted(tmp_path: Path) -> None:
    write(tmp_path, labelled([(1, A)]))
    photo(tmp_path / "images/x.tif")
    photo(tmp_path / "images/y.jpg")
    photo(tmp_path / "masks/y.jpg")
    dataset = open_dataset("folder", tmp_path)
    assert dataset.image_ids == ["x"]
    told = [(p.image_id, p.detail) for p in dataset.listing_problems]
    assert told == [
        ("x", "x.tif has the name of x.png, which is used"),
        ("y", "y.jpg has no mask"),
        ("y", "y.jpg in masks is not .png or .tif or .tiff or .bmp"),
    ]


def test_names_are_the_same_on_every_file_system(tmp_path: Path) -> None:
    photo(tmp_path / "images/cafe\u0301.jpg")  # as a Mac writes it
    save(labelled([(1, A)]), tmp_path / "masks/caf\u00e9.png")
    assert open_dataset("folder", tmp_path).image_ids == ["caf\u00e9"]


def test_several_sets_side_by_side(tmp_path: Path) -> None:
    for name in ("voc", "coco"):
        make_folder(tmp_path / name)
    photo(tmp_path / "photos/images/p.jpg")  # half a set
    (tmp_path / "notes").mkdir()
    dataset = open_dataset("folder", tmp_path)
    assert dataset.image_ids == [f"{s}/{n}" for s in ("coco", "voc") for n in ("B", "m", "z")]
    assert [(p.image_id, p.kind) for p in dataset.listing_problems] == [
        ("photos", "missing partner")
    ]
    assert [o.category for o in dataset.load("voc/m").objects] == ["dog", "", "cat"]


def test_segments_that_are_not_in_the_mask_are_counted(tmp_path: Path) -> None:
    write(tmp_path, labelled([(1, A)]))
    listed = {"x": [{"id": 1, "category": "dog"}, {"id": 4, "category": "cat"}]}
    (tmp_path / "segments.json").write_text(json.dumps(listed))
    sample = only(tmp_path)
    assert [o.category for o in sample.objects] == ["dog"]
    assert [(p.kind, "4" in p.detail) for p in sample.problems] == [("empty mask", True)]


def test_where_all_objects_are_left_out_their_problems_stay(tmp_path: Path) -> None:
    write(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8))
    (tmp_path / "segments.json").write_text('{"x": [{"id": 1}, {"id": 2}]}')
    sample = only(tmp_path)
    assert sample.objects == ()
    assert [p.kind for p in sample.problems] == ["empty mask", "empty mask", "no object"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"x": [{"category": "dog"}]}', '{"x": 3}', '{"x": [3]}']
)
def test_a_damaged_segments_file_is_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path, labelled([(1, A)]))
    (tmp_path / "segments.json").write_text(text)
    with pytest.raises(UserError, match="cannot use .*segments.json.*Expected"):
        open_dataset("folder", tmp_path)


# Label maps against loops

maps = arrays(
    np.int32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 3)
)


@settings(max_examples=60)
@given(maps)
def test_objects_of_labels_share_out_the_map(labels: np.ndarray) -> None:
    objects = object_per_label(labels, labels_in(labels))
    again = np.zeros_like(labels)
    for each in objects:
        assert each.mask.any() and not again[each.mask].any()
        again[each.mask] = int(each.object_id)
    assert np.array_equal(again, labels)


def flood(labels: np.ndarray) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Label and pixels of every region: labels in order, regions by their first pixel."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(labels), strict=True)}
    regions = []
    while left:
        start = min(left)
        label, region, edge = int(labels[start]), set(), {start}
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            edge |= {p for p in around & left if labels[p] == label} - region
        left -= region
        regions.append((label, frozenset(region)))
    return sorted(regions, key=lambda r: (r[0], min(r[1])))


@settings(max_examples=60)
@given(maps)
def test_regions_are_those_of_a_flood(labels: np.ndarray) -> None:
    found = list(object_per_region(labels, labels_in(labels), str))
    expected = flood(labels)
    assert len({o.object_id for o in found}) == len(found)
    assert [
        (int(o.category), frozenset((int(y), int(x)) for y, x in np.argwhere(o.mask)))
        for o in found
    ] == expected
