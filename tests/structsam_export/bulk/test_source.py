"""Sources: which photos, in which order, with which prompts; mistakes name the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.bulk.source import read_source
from structsam_export.bulk.work import safe_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("2.JPG", "1.png", "a/3.webp", "a/notes.md"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(source: Path | str) -> list[str]:
    return [task.name for task in read_source(source).tasks]


def test_a_folder_a_pattern_and_a_photo(folder: Path) -> None:
    assert names(folder) == ["1.png", "2.JPG", "a/3.webp"]
    assert names(f"{folder}/*.png") == ["1.png"]
    assert names(f"{folder}/**/*") == ["1.png", "2.JPG", "a/3.webp"]
    assert names(folder / "1.png") == ["1.png"]
    assert not read_source(folder).has_prompts


def test_results_are_no_photos(folder: Path) -> None:
    """Neither those of an earlier run below the source, nor through a link."""
    out = folder / "out"
    (out / "overlays").mkdir(parents=True)
    for name in ("1.png.png", "overlays/2.JPG.png"):
        (out / name).write_bytes(b"")
    (folder / "link").symlink_to(out / "overlays", target_is_directory=True)
    for source in (folder, f"{folder}/**/*"):
        found = read_source(source, out=folder / "a" / ".." / "out").tasks
        assert [task.name for task in found] == ["1.png", "2.JPG", "a/3.webp"]
        assert len(read_source(source).tasks) > 4
    with pytest.raises(UserError, match="no photo in"):
        read_source(out, out=out)


@pytest.mark.parametrize("source", [".", "*.png", "1.png"])
def test_a_folder_of_photos_is_for_files_that_name_them(folder: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"`photos=` is the folder of names in a .txt"):
        read_source(folder / source, folder)


def test_a_folder_of_photos_that_is_not_there(folder: Path) -> None:
    (folder / "list.txt").write_text("1.png\n")
    with pytest.raises(UserError, match="no folder .*nowhere"):
        read_source(folder / "list.txt", folder / "nowhere")


def test_a_text_file(folder: Path) -> None:
    list_file = folder / "list.txt"
    list_file.write_text(
        "# photos\n1.png\t1,2,3,4\t5,6,7,8\n\na/3.webp\t5,6\t7,8,0\nmy photo.jpg\n"
    )
    first, second, third = read_source(list_file).tasks
    assert (first.path, first.boxes) == (folder / "1.png", [(1, 2, 3, 4), (5, 6, 7, 8)])
    assert second.points == [(5, 6, 1), (7, 8, 0)] and third.name == "my photo.jpg"
    (folder / "elsewhere").mkdir()
    other = read_source(list_file, folder / "elsewhere").tasks[0]
    assert other.path == folder / "elsewhere" / "1.png"
    list_file.write_text("1.png\n2.JPG\t1,2,3,x\n")
    with pytest.raises(UserError, match=r"list\.txt, line 2: box '1,2,3,x'"):
        read_source(list_file)


def test_a_csv_file(folder: Path) -> None:
    table = folder / "table.csv"
    table.write_text("file_name,x0,y0,x1,y1\n1.png,1,2,3,4\n2.JPG,,,,\n1.png,5,6,7,8\n")
    first, second = read_source(table).tasks
    assert first.boxes == [(1, 2, 3, 4), (5, 6, 7, 8)] and not second.boxes
    table.write_text("image,x,y\n1.png,3,4\n1.png,5,6\n")
    assert read_source(table).tasks[0].points == [(3, 4, 1), (5, 6, 1)]
    table.write_text("image,x0,y0,x1,y1\n1.png,1,2,3,\n")
    with pytest.raises(UserError, match=r"table\.csv, line 2: box '1,2,3,'"):
        read_source(table)
    table.write_text("photo,x\n")
    with pytest.raises(UserError, match="has no column image or file"):
        read_source(table)


def test_a_coco_file(folder: Path) -> None:
    file = folder / "instances.json"
    coco = {
        "images": [{"id": 7, "file_name": "2.JPG"}, {"id": 3, "file_name": "1.png"}],
        "annotations": [{"id": 11, "image_id": 3, "bbox": [1, 2, 10, 20], "category_id": 5}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    file.write_text(json.dumps(coco))
    source = read_source(file)
    assert [task.name for task in source.tasks] == ["2.JPG", "1.png"]
    assert source.tasks[1].boxes == [(1, 2, 11, 22)]
    assert source.tasks[1].labels == [{"category_id": 5, "source_id": 11}]
    assert source.categories == ({"id": 5, "name": "cat"},) and source.digest
    assert source.image_ids == {"2.JPG": 7, "1.png": 3}
    for damaged in ("{", '{"images": [{"id": 1}]}', '{"images": 5}', "[]"):
        file.write_text(damaged)
        with pytest.raises(UserError, match="not in COCO's form"):
            read_source(file)


def test_annotations_without_a_category_get_one_of_their_own(folder: Path) -> None:
    boxes = [{"image_id": 3, "bbox": [1, 2, 3, 4], "category_id": c} for c in (1, None, 2)]
    coco = {"images": [{"id": 3, "file_name": "1.png"}], "annotations": boxes}
    coco["categories"] = [{"id": 1, "name": "person"}]
    (folder / "instances.json").write_text(json.dumps(coco))
    source = read_source(folder / "instances.json")
    assert [label["category_id"] for label in source.tasks[0].labels] == [1, 3, 2]
    assert source.categories == ({"id": 1, "name": "person"}, {"id": 3, "name": "object"})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": 3, "file_name": "2.JPG"}, "2 images with the id 3"),
        ({"id": 4, "file_name": "1.png"}, "2 images with the file_name 1.png"),
    ],
)
def test_images_that_could_be_mixed_up_are_refused(
    folder: Path, second: dict[str, object], message: str
) -> None:
    coco = {"images": [{"id": 3, "file_name": "1.png"}, second]}
    (folder / "instances.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match=message):
        read_source(folder / "instances.json")


@pytest.mark.parametrize("name", ["nowhere", "*.gif", "a/notes.md"])
def test_no_photos(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="no photo"):
        read_source(folder / name if name != "a/notes.md" else folder / "a" / "*.md")


def test_an_unknown_kind_of_file(folder: Path) -> None:
    with pytest.raises(UserError, match="is no source of photos"):
        read_source(folder / "a" / "notes.md")
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="names no photo"):
        read_source(folder / "empty.txt")


def test_names_that_lead_elsewhere_stay_below_the_folder() -> None:
    assert safe_name("a/b.jpg") == "a/b.jpg" and safe_name("a\\b.jpg") == "a/b.jpg"
    for name in ("/etc/b.jpg", "../b.jpg", "a/../../b.jpg", "C:\\b.jpg"):
        path = safe_name(name)
        assert path.endswith("-b.jpg") and "/" not in path
    assert safe_name("../a/b.jpg") != safe_name("../c/b.jpg")


def test_long_names_keep_their_end_and_stay_in_their_folder() -> None:
    """255 bytes are a file system's limit, and endings are put behind the name."""
    long = ["a/" + first + 80 * "\u732b" + ".jpg" for first in "xy"] + [f"../{'z' * 250}.jpg"]
    short = [safe_name(name) for name in long]
    assert all(len(name.encode()) < 120 and name.endswith(".jpg") for name in short)
    assert [name.split("/")[0] == "a" for name in short] == [True, True, False]
    assert len(set(short)) == 3 and ".." not in short[2]
    assert safe_name(f"a/{'x' * 196}.jpg") == f"a/{'x' * 196}.jpg"
    odd = os.fsdecode(b"../\xff.jpg")  # no Unicode
    assert safe_name(odd).endswith(os.fsdecode(b"-\xff.jpg"))
