"""The scripts of the frontier study: its tables and chart, and truth for photos without any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from structsam_export.predict.preprocessing import ImageGeometry
from tests.structsam.evaluation.small_results import (
    row_of,
    run_facts,
    square,
    write_facts,
    write_rows,
)

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
pytest.importorskip("matplotlib", reason="needs the extra `eval`")


@pytest.fixture(autouse=True)
def with_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_frontier_is_what_no_cheaper_point_reaches() -> None:
    from frontier_tables import frontier

    assert frontier([(3, 1), (1, -2), (2, -3), (4, 0)]) == [(1, -2), (3, 1)]
    assert frontier([(1, 0), (1, 2)]) == [(1, 2)]


def test_a_labelled_photo_has_the_surest_masks_and_no_large_overlap() -> None:
    from pseudo_masks import labels_of

    masks = np.zeros((4, 40, 40), bool)
    masks[0, :20, :20] = True
    masks[1, 2:20, :20] = True  # nearly the first again
    masks[2, 18:, 18:] = True  # a corner of it is the first's
    masks[3] = True  # the whole photo

    class Fake:
        geometry = ImageGeometry((40, 40), (40, 40), 40)

        def set_image(self, rgb: np.ndarray) -> None:
            self.rgb = rgb

        def predict_low_res(self, points: np.ndarray, labels: np.ndarray):
            assert points.shape == (4, 1, 2) and labels.shape == (4, 1)
            return np.array([[0.9, 0], [0.8, 0], [0.7, 0], [0.95, 0]]), masks[:, None].repeat(2, 1)

        def upscale(self, low_res: np.ndarray) -> np.ndarray:
            return low_res

    labels = labels_of(Fake(), np.zeros((40, 40, 3), np.uint8), 2)
    assert np.array_equal(labels, masks[0] * 1 + (masks[2] & ~masks[0]) * 2)


def test_tables_and_chart_of_small_results(tmp_path: Path) -> None:
    rows = [row_of(f"{kind}/{n}", "1", 1, *[square(5, 5, 9, 9)] * 2) for kind in "ab" for n in "12"]
    folder = tmp_path / "box"
    for run in ("unmerged", "merged"):
        write_rows(folder, run, rows)
    merging = {"method": "structsam", "rate": 0.5, "layers": "all", "placement": "stage"}
    facts = run_facts("merged") | {"merging": merging, "label": "merged", "gmac": 5.0}
    write_facts(folder, [run_facts("unmerged") | {"gmac": 9.0}, facts])
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "frontier_tables.py"), str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "frontier.md").read_text("utf-8")
    assert "## Box prompts" in text and "| merged |" in text
    assert (tmp_path / "frontier-box.png").read_bytes().startswith(b"\x89PNG")


def test_no_results_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "frontier_tables.py"), str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
