"""scripts/fidelity_tables.py: runs against the unmerged one, methods against StructSAM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.structsam.evaluation.small_results import (
    row_of,
    run_facts,
    square,
    write_facts,
    write_rows,
)

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fidelity_tables.py"
WIDTHS = {"unmerged": 10, "structsam": 8, "tome": 6}  # IoU 1, 0.8, 0.6 with a truth 10 wide


def printed(folder: Path) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_rows_and_paired_differences(tmp_path: Path) -> None:
    for name, width in WIDTHS.items():
        truth, found = square(5, 20, 10, 10), square(5, 20, width, 10)
        write_rows(tmp_path, name, [row_of(f"i{i}", "1", 1, truth, found) for i in range(8)])
    runs = [run_facts("unmerged"), *(run_facts(n, n, 0.5) for n in ("structsam", "tome"))]
    write_facts(tmp_path, runs)
    code, out, _ = printed(tmp_path)
    assert code == 0
    assert "| unmerged | 100% | 40.0 |  | 100.0 [100.0, 100.0] | 90.0 [90.0, 90.0] |  |" in out
    assert "| structsam 0.5 | 50% | 32.0 |  | -20.0 [-20.0, -20.0], worse |" in out
    assert (
        "| tome 0.5 | -20.0 [-20.0, -20.0] | -20.0 [-20.0, -20.0] | +20.0 [+20.0, +20.0] |" in out
    )


def test_one_image_has_no_interval_and_another_unmerged_run_is_a_group(tmp_path: Path) -> None:
    for name in ("unmerged", "unmerged-openvino"):
        write_rows(tmp_path, name, [row_of("i", "1", 1, *[square(5, 5, 9, 9)] * 2)])
    other = run_facts("unmerged-openvino", backend="openvino")
    write_facts(tmp_path, [run_facts("unmerged"), other])
    code, out, err = printed(tmp_path)
    assert code == 0, err
    assert "## unmerged" in out and "| unmerged | 100% | 40.0 |  | 100.0 | 90.0 |  |" in out


def test_another_folder_is_one_line(tmp_path: Path) -> None:
    code, out, err = printed(tmp_path)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
