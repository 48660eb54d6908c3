"""A table in a log: at most 100 columns, numbers whole, nothing lost."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from structsam_export.bundle.folder import Bundle
from structsam_export.cli import main as command_line
from structsam_export.cli.inventory import inventory, inventory_tables
from structsam_export.cli.tables import fit
from structsam_export.cli.terminal import WIDTH, bundle_table


def printed(table: Table, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in fit(table, width):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def table_of(texts: int, numbers: int, rows: int = 3) -> Table:
    table = Table("name", title="a title", caption="a caption")
    for index in range(texts):
        table.add_column(f"text {index}")
    for index in range(numbers):
        table.add_column(f"number {index}", justify="right")
    for row in range(rows):
        words = [f"some words about t{row}_{index} and more of them" for index in range(texts)]
        table.add_row(f"row{row}", *words, *(f"{row}.{100 + index}" for index in range(numbers)))
    return table


@pytest.mark.parametrize("texts", [0, 1, 3, 8])
@pytest.mark.parametrize("numbers", [1, 6, 20])
@pytest.mark.parametrize("width", [60, WIDTH])
def test_any_table_fits_and_keeps_all_it_says(texts: int, numbers: int, width: int) -> None:
    shown = printed(table_of(texts, numbers), width)
    assert max(map(len, shown.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert shown.count("a title") == shown.count("a caption") == 1
    for row in range(3):
        for index in range(texts):
            assert re.search(rf"\bt{row}_{index}\b", shown)
        for index in range(numbers):
            assert re.search(rf"\b{row}\.{100 + index}\b", shown), "a number was broken"


def test_every_part_begins_with_the_rows_name() -> None:
    parts = fit(table_of(0, 20), WIDTH)
    assert len(parts) > 1
    for part in parts:
        assert list(part.columns[0].cells) == ["row0", "row1", "row2"]
    numbers = [column.header for part in parts for column in part.columns[1:]]
    assert numbers == [f"number {index}" for index in range(20)]


def test_a_table_that_fits_is_one_table() -> None:
    table = table_of(1, 3)
    assert fit(table, WIDTH) == [table]


def test_a_path_without_spaces_is_folded_not_cut() -> None:
    table = Table("file", "size")
    path = "/".join(f"folder{index:02}" for index in range(30))
    table.add_row(path, "1 MB")
    shown = printed(table)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "".join(re.findall(r"[a-z0-9/]+", shown.split("1 MB", 1)[0]))[-9:] in path
    assert all(f"folder{index:02}" in re.sub(r"[\s│]", "", shown) for index in (0, 5))


def test_tables_of_list_and_of_a_bundle_fit(own_bundle: Bundle, one_torch_thread: None) -> None:
    own_bundle.manifest["files"]["a" * 200 + ".onnx"] = {"size": 1, "sha256": "0"}
    for table in [*inventory_tables(inventory()), bundle_table(own_bundle)]:
        assert max(map(len, printed(table).splitlines())) <= WIDTH


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "all"),
        ("--placement", "stage"),
        ("--prompt-aware", "--prompt-form", "windows"),
    ],
)
def test_tables_of_flops_fit(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # a log has no width of its own
    assert command_line.run(["flops", "--model", "vit_h", *options]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
