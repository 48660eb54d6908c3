"""Recipes and records: written, read, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.models import model_spec
from structsam.models.image_size import resized
from structsam_export.tune.recipe import Recipe, read_recipe
from structsam_export.tune.record import Record

MERGING = MergeConfig.of(rate=(0.5, 0.0) * 6, placement="block", options={"operator": "central"})
RECIPE = Recipe("vit_b", MERGING.to_dict(), 768, "int8-fp32", "photos", {"milliseconds": 1.0})


def test_a_recipe_comes_back_as_it_was(tmp_path: Path) -> None:
    RECIPE.save(tmp_path / "recipe.json")
    read = read_recipe(tmp_path / "recipe.json")
    spec = resized(model_spec("vit_b"), 768, "native")
    assert read.config(spec) == MERGING
    assert read.config(spec, align=8).align == 8
    assert (read.image_size, read.precision, read.calibrate) == (768, "int8-fp32", "photos")


def test_a_recipe_belongs_to_a_model_and_a_size() -> None:
    with pytest.raises(UserError, match="found for vit_b, not vit_l"):
        RECIPE.config(model_spec("vit_l"))
    with pytest.raises(UserError, match=r"for an input of 768 pixels. Add `image_size=768`"):
        RECIPE.config(model_spec("vit_b"))
    trained = Recipe("vit_b", MERGING.to_dict())
    with pytest.raises(UserError, match="for an input of 1024 pixels"):
        trained.config(resized(model_spec("vit_b"), 768, "native"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no recipe at"),
        ("{", "cannot be read"),
        ("[]", "is no recipe"),
        ('{"format": 1, "rates": [0.5]}', "is no recipe"),
        ('{"format": 99, "merging": {}}', "has format 99, and this structsam reads up to 1"),
        ('{"format": 1, "merging": {}}', "lacks 'model'"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "recipe.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(file)


def test_a_record_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    record = Record(folder, {"photos": ("a",)})
    assert record.get("loss a", lambda: 0.5) == 0.5
    record.keep("loss b", 0.25)
    with (folder / "measured.jsonl").open("a") as stream:
        stream.write('{"name": "loss c", "val')  # killed while it wrote
    again = Record(folder, {"photos": ["a"]})
    assert again.reused == 2 and "loss c" not in again
    again.keep("loss c", 1.0)
    assert Record(folder, {"photos": ["a"]}).named("loss ") == {
        "loss a": 0.5,
        "loss b": 0.25,
        "loss c": 1.0,
    }
    assert len((folder / "measured.jsonl").read_text().splitlines()) == 3


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    Record(tmp_path / "tune", {"model": 1})
    with pytest.raises(UserError, match="holds a search with other photos"):
        Record(tmp_path / "tune", {"model": 2})
    (tmp_path / "tune" / "tune.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Record(tmp_path / "tune", {"model": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="exists and is no search"):
        Record(tmp_path / "other", {})
