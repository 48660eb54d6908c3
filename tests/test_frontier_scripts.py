"""The scripts of the frontier study: its tables and chart, and truth for photos without any."""

from __future__ import annotations

import json
import os
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


def ran(script: str, *words: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


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
    done = ran("frontier_tables.py", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "frontier.md").read_text("utf-8")
    assert "## Box prompts" in text and "| merged |" in text
    assert (tmp_path / "frontier-box.png").read_bytes().startswith(b"\x89PNG")


def test_no_results_is_one_line(tmp_path: Path) -> None:
    done = ran("frontier_tables.py", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def bench_row(bundle: str, backend: str, ms: float, role: str = "bundle", **more: str) -> dict:
    usual = {"part": "encoder", "status": "measured"}
    return {"bundle": bundle, "role": role, "backend": backend, "median_ms": ms, **usual, **more}


def test_latency_stands_beside_what_each_point_loses(tmp_path: Path) -> None:
    rows = [row_of(f"a/{n}", "1", 1, square(5, 5, 9, 9), square(5, 5, 9, 9)) for n in "12"]
    merging = {"method": "tomesd", "rate": 0.5, "layers": "all", "placement": "stage"}
    small = {"image_size": 512, "embedding": "native"}
    ints = {"precision": "int8-fp32"}
    runs = {
        "box": [
            run_facts("unmerged") | {"gmac": 9.0},
            run_facts("fp") | {"merging": merging, "gmac": 5.0} | small,
            run_facts("up") | {"merging": merging, "gmac": 5.0} | small | {"embedding": "upsample"},
        ],
        "int8-box": [
            run_facts("unmerged") | {"gmac": 9.0},
            run_facts("q") | {"merging": merging, "gmac": 5.0} | small | ints,
        ],
    }
    for chapter, facts in runs.items():
        for run in facts:
            write_rows(tmp_path / chapter, run["name"], rows)
        write_facts(tmp_path / chapter, facts)
    timed = [
        bench_row("stock", "onnxruntime", 900, "stock"),
        bench_row("unmerged", "onnxruntime", 890, "unmerged"),
        bench_row("fp32-1024-structsam-0-attention", "onnxruntime", 880),
        bench_row("fp32-512-tomesd-0.5-stage", "onnxruntime", 61),
        bench_row("int8-fp32-512-tomesd-0.5-stage", "onnxruntime", 43),
        bench_row("int8-fp32-512-tomesd-0.5-stage", "openvino", 31),
        bench_row("fp32-512-tomesd-0.5-stage", "openvino", 7, status="not run"),
        bench_row("fp32-512-tomesd-0.5-stage", "openvino", 8, part="decoder"),
    ]
    report = {"rows": timed, "hardware": {"cpu": "A CPU"}, "date": "2026-11-27T20:00:00"}
    (tmp_path / "latency-512").mkdir()
    (tmp_path / "latency-512" / "bench.json").write_text(json.dumps(report))
    done = ran("frontier_tables.py", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "frontier.md").read_text("utf-8").partition("## Latency")[2]
    assert "A CPU, 2026-11-27" in text and "ONNX Runtime 900 to 900 ms" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4, "head, rule, the unmerged point, and one row for both precisions"
    unmerged, point = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:])
    assert "OpenVINO, FP32" not in table[0], "nothing was measured for that column"
    assert unmerged[:5] == ["unmerged", "9.0", "880", "", ""]
    assert point[1:7] == ["5.0", "61", "43", "31", "+0.0 [+0.0, +0.0]", "+0.0 [+0.0, +0.0]"]
    for backend in ("onnxruntime", "openvino"):
        assert (tmp_path / f"frontier-latency-{backend}.png").read_bytes().startswith(b"\x89PNG")


def test_int8_stands_beside_fp32_at_the_same_points(tmp_path: Path) -> None:
    def points(places: dict[str, tuple[float, int]], ints: str = "fp32") -> list[dict]:
        """Runs of {size: (rate, width of the masks)}; truth is 10 wide."""
        found = [run_facts("unmerged")]
        write_rows(folder, "unmerged", rows_of(10))
        for size, (rate, width) in places.items():
            name = f"{ints}-{size}"
            more = {"image_size": int(size), "embedding": "native", "precision": ints}
            method = "tomesd" if rate else None
            found.append(run_facts(name, method, rate, **more))
            write_rows(folder, name, rows_of(width))
        return found

    def rows_of(width: int) -> list[dict]:
        truth, mask = square(5, 5, 10, 10), square(5, 5, width, 10)
        return [row_of(name, "1", 1, truth, mask) for name in "abc"]

    folder = tmp_path / "click"
    write_facts(folder, points({"512": (0.5, 8), "640": (0.5, 9), "896": (0, 7)}))
    folder = tmp_path / "int8-click"
    write_facts(folder, points({"512": (0.5, 5), "640": (0.5, 10), "768": (0.5, 9)}, "int8-fp32"))
    done = ran("frontier_tables.py", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "frontier.md").read_text("utf-8")
    table = text.partition("## One click")[2].partition("The worst set")[0].splitlines()
    rows = [line for line in table if line.startswith("| tomesd") or line.startswith("| run |")]
    last = [line.split("|")[-2].strip() for line in rows]
    assert last == ["mIoU, INT8", "-50.0 [-50.0, -50.0]", "+0.0 [+0.0, +0.0]"]
    apart = text.partition("## INT8 beside FP32")[2].splitlines()[4]
    # 512: 50 - 80 = -30, and 640: 100 - 90 = +10; 768 and 896 are in one precision only
    assert apart == "| One click | 2 | -10.00, -30.0 | -10.00, -30.0 |"


PRETENDER = """#!/bin/sh
# a line for every call, its words behind tabs; an export makes its folder
out= name= before=
for word in "$@"; do
  printf '%s\\t' "$word"
  case $before in --out) out=$word ;; --name) name=$word ;; esac
  before=$word
done >> "${0%/*}/calls"
echo >> "${0%/*}/calls"
if [ "$1" = export ]; then mkdir -p "$out/$name" && echo {} > "$out/$name/manifest.json"; fi
"""


def study(tmp_path: Path, *words: str) -> list[list[str]]:
    """Run the study with a pretended `structsam-export`; return the calls that it got."""
    pretender = tmp_path / "bin" / "structsam-export"
    pretender.parent.mkdir(exist_ok=True)
    pretender.write_text(PRETENDER)
    pretender.chmod(0o755)
    calls = pretender.with_name("calls")
    calls.unlink(missing_ok=True)
    subprocess.run(
        ["bash", SCRIPTS / "frontier_study.sh", "--root", "data", "--out", tmp_path, *words],
        env={**os.environ, "PATH": f"{pretender.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
    )  # fmt: skip
    lines = calls.read_text().splitlines() if calls.exists() else []
    return [line.rstrip("\t").split("\t") for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_study_asks_for_every_point_once(tmp_path: Path) -> None:
    calls = study(tmp_path, "--calibrate", "photos", "int8", "latency")
    exports = [call[call.index("--name") + 1] for call in calls if call[0] == "export"]
    points, smaller = 13, 4  # rates x places x methods, and unmerged; sizes below 1024
    assert len(set(exports)) == len(exports) == points * (2 * 5 + smaller)
    quantised = [call for call in calls if "--calibrate" in call]
    assert {call[call.index("--precision") + 1] for call in quantised} == {"int8-fp32"}
    assert len(quantised) == points * (5 + smaller)
    for call in (call for call in calls if call[0] == "export"):
        size, form, name = (word_after(call, n) for n in ("image-size", "embedding", "name"))
        assert f"-{size}{'up' if form == 'upsample' else ''}-" in name
    unmerged = [c for c in calls if c[0] == "export" and word_after(c, "rate") == "0"]
    assert len(unmerged) == 2 * 5 + smaller and all("dense" in call for call in unmerged)
    evaluations = [call for call in calls if call[0] == "evaluate"]
    assert [word_after(call, "prompt") for call in evaluations] == ["box", "click"]
    for call in evaluations:
        names = [Path(word).name for word in call if "/bundles/" in word]
        assert names[0] == "fp32-1024-structsam-0-attention", "the baseline comes first"
        assert sorted(names[1:]) == sorted(n for n in exports if n.startswith("int8"))
    benches = [call for call in calls if call[0] == "bench"]
    assert [sum("/bundles/" in word for word in call) for call in benches] == [26] * 5
    again = study(tmp_path, "--calibrate", "photos", "int8")
    assert not [call for call in again if call[0] == "export"], "what is there is kept"
    floats = study(tmp_path, "latency")
    assert [sum("/bundles/fp32" in word for word in call) for call in floats] == [13] * 5
    assert study(tmp_path, "int8") == [], "INT8 needs photos"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_every_chapter_has_both_methods_and_both_forms(tmp_path: Path) -> None:
    (tmp_path / "large-masks").mkdir()
    calls = study(tmp_path, "--large", "photos", "--calibrate", "photos")
    evaluations = [call for call in calls if call[0] == "evaluate"]
    asked: dict[str, list[str]] = {}
    for call in evaluations:
        chapter = Path(word_after(call, "out")).name
        assert chapter.endswith(word_after(call, "prompt"))
        assert ("large-masks" in word_after(call, "root")) == ("large" in chapter)
        if chapter.startswith("int8"):
            assert sum("/bundles/int8" in word for word in call) == 117
        else:
            assert word_after(call, "methods") == "structsam,tomesd"
            asked.setdefault(chapter, []).append(word_after(call, "embedding"))
    forms = ["native", "upsample"]
    assert asked == {n: forms for n in ("box", "click", "large-box", "large-click")}
    assert len(evaluations) == 8 + 4 and calls[-1][0] == "bench"
    assert study(tmp_path, "large") == [], "needs photos"


def word_after(call: list[str], option: str) -> str:
    return call[call.index(f"--{option}") + 1]


@pytest.mark.parametrize(
    ("files", "told"),
    [(None, "is no folder"), ((), "no photos in"), (("a.jpg", "a.png"), "differ in their ending")],
)
def test_photos_that_cannot_be_labelled_are_refused_before_any_work(
    tmp_path: Path, files: tuple[str, ...] | None, told: str
) -> None:
    if files is not None:
        (tmp_path / "photos").mkdir()
        for name in files:
            (tmp_path / "photos" / name).touch()
    done = ran("pseudo_masks.py", tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
