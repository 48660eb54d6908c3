"""A table in a log: at most 100 columns, numbers whole, nothing lost."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from structsam.evaluation.summary import summarise
from structsam.models import MODELS
from structsam_export.bench.report import BenchReport, BenchRow, render_table
from structsam_export.bundle.folder import Bundle
from structsam_export.cli import main as command_line
from structsam_export.cli.inventory import inventory, inventory_tables
from structsam_export.cli.tables import fit
from structsam_export.cli.terminal import WIDTH, bundle_table, parity_table
from structsam_export.evaluate.table import summary_table
from structsam_export.inspect.spectrum_report import (
    BlockSpectrum,
    SpectrumReport,
    SpectrumRow,
    spectrum_table,
)
from structsam_export.parity.compare import ParityReport, ParityRow
from structsam_export.tune.points import Point
from structsam_export.tune.recipe import Recipe
from structsam_export.tune.report import frontier_table
from structsam_export.tune.search import Limit, Measured
from structsam_export.tune.tune import TuneReport
from tests.structsam.evaluation.small_results import (
    row_of,
    run_facts,
    square,
    write_facts,
    write_rows,
    write_times,
)


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
    *parts, caption = fit(table_of(0, 20), WIDTH)
    assert len(parts) > 1 and str(caption) == "a caption"
    for part in parts:
        assert list(part.columns[0].cells) == ["row0", "row1", "row2"]
    numbers = [column.header for part in parts for column in part.columns[1:]]
    assert numbers == [f"number {index}" for index in range(20)]


def test_rows_of_one_name_are_told_apart_in_every_part() -> None:
    table = Table("method", "rate", "tokens")
    for index in range(20):
        table.add_column(f"number {index}", justify="right")
    for rate in ("0.25", "0.5"):
        table.add_row("structsam", rate, "some", *["0.123"] * 20)
    parts = fit(table, WIDTH)
    assert len(parts) > 1
    for part in parts:
        assert list(part.columns[1].cells) == ["0.25", "0.5"]
    assert [part.columns[2].header for part in parts[:2]] == ["tokens", "number 6"]


def test_a_caption_is_as_wide_as_a_log_where_the_last_part_is_narrow() -> None:
    table = table_of(0, 10)
    table.caption = " ".join(["words"] * 40)
    lines = [line for line in printed(table).splitlines() if line.startswith("words")]
    assert len(lines) == 3, "240 characters in lines of 100"


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


def check_it_fits(table: Table) -> list[str]:
    """Return the lines of a log; nothing in it is longer than allowed, and nothing cut."""
    shown = printed(table)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    return shown.splitlines()


def parity_row(backend: str, image: str, status: str = "passed", reason: str = "") -> ParityRow:
    numbers = ("cosine", "relative_l2", "mean_mask_iou", "min_mask_iou", "same_slot")
    metrics = {} if status == "not run" else dict.fromkeys(numbers, 0.9876543)
    return ParityRow(backend, image, status, reason, metrics)


def test_the_usual_table_of_parity_is_one_table() -> None:
    report = ParityReport("name", "fp16", False, [parity_row("onnxruntime", "coffee.png")])
    assert len(fit(parity_table(report), WIDTH)) == 1


def test_a_table_of_parity_fits() -> None:
    absent = "this onnxruntime has no provider; " * 5
    names = ("onnxruntime-cuda", "torch-compile", "tensorrt-rtx")
    rows = [parity_row(name, f"IMG_2026_{name}_{'long' * 20}.jpg", "failed") for name in names]
    lines = check_it_fits(
        parity_table(
            ParityReport("name", "fp16", True, [*rows, parity_row("torch", "", "not run", absent)])
        )
    )
    assert len([line for line in lines if "no provider" in line]) <= 2, "the reason is readable"


def test_a_table_of_bench_fits() -> None:
    rows = [
        BenchRow(
            bundle=f"vit_h-structsam-r0.50-global-{role}",
            role=role,
            model="vit_h",
            precision="fp16",
            backend="onnxruntime-cuda",
            part=part,
            batch=2,
            random_weights=True,
            parity="parity FAILED: onnxruntime on a.png: cosine 0.5 (gate 0.999)",
            fidelity="mIoU -0.0123 [-0.0200, -0.0100]",
            status="measured",
            first_ms=12345.6,
            median_ms=12345.6,
            p10_ms=12345.6,
            p90_ms=12345.6,
            with_decoder_ms=12345.6,
            peak_memory_mib=12345.6,
            runtime={"device_memory_mib": 12345.6},
            gmac=2736.1,
            of_gemm_rate=0.5,
            speedup={"stock": 1.23, "unmerged": 1.23},
            first_speedup={"stock": 1.23},
        )
        for role in ("bundle", "stock")
        for part in ("encoder", "decoder")
    ]
    settings = {"threads": 2, "interleaved": True, "runs": 5, "warmup": 2, "timed": "one call"}
    machine = {"cpu": "a processor with a long name " * 4, "usable_cores": 2, "gpu": "a GPU"}
    report = BenchReport(rows, [], settings | {"gemm_gflops": {"cpu": 1.0}}, machine, {}, "", "")
    check_it_fits(render_table(report))


def test_a_table_of_tune_fits() -> None:
    spec = MODELS["vit_h"]
    mixed = Point(896, tuple(0.1 + index / 100 for index in range(32)), "attention", "int8-fp32")
    found = (
        Measured(mixed, 1234.5, 12345.6, 0.0123, 0.0145),
        Measured(Point(stock=True), 2790.0, 98765.4, 0.0, 0.0),
    )
    recipe = Recipe("vit_h", {})
    report = TuneReport(spec, recipe, Limit(), found[0], found[1], found, (16, 8), "openvino:bf16")
    check_it_fits(frontier_table(report))


def test_tables_of_studies_fit() -> None:
    blocks = tuple(BlockSpectrum(index, "window", 196, 97, 0.1, 0.1) for index in range(12))
    rows = tuple(SpectrumRow("cubistmerge", rate, blocks, "") for rate in (0.25, 0.5))
    weights = "checkpoints/sam_vit_b_01ec64.pth"
    check_it_fits(
        spectrum_table(SpectrumReport("vit_b", weights, "affinity", "all", ("a.png",), rows))
    )


def test_a_table_of_evaluate_fits(tmp_path: Path) -> None:
    names = ("unmerged", "structsam-r0.50", "cubistmerge-r0.75-layers2_5_8_11-stage-proportional")
    for name in names:
        write_rows(tmp_path, name, [row_of("a", "1", 1, square(5, 5, 9, 9), square(5, 5, 9, 8))])
        write_times(tmp_path, name, [12345.0])
    runs = [run_facts(names[0]), *(run_facts(name, name, 0.5) for name in names[1:])]
    write_facts(tmp_path, runs)
    check_it_fits(summary_table(summarise(tmp_path)))


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
