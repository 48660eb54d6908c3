"""The report of results folders whose numbers, pictures and words are known."""

from __future__ import annotations

import builtins
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from structsam.errors import UserError
from structsam.evaluation.summary import summarise
from structsam_export.evaluate import gallery
from structsam_export.evaluate import report as evaluation_report
from structsam_export.evaluate.curves import DARK, LIGHT, draw_curves, series_of
from structsam_export.evaluate.report import markdown_cell, summary_table, write_report
from structsam_export.evaluate.table import RANDOM, findings, kept_share, kept_tokens
from tests.structsam.evaluation.small_results import (
    METHOD,
    row_of,
    run_facts,
    square,
    two_runs,
    write_facts,
    write_rows,
    write_times,
)


def report(folders, out, **more) -> tuple[str, str]:
    """Write it; the Markdown and the page."""
    folders = folders if isinstance(folders, list) else [folders]
    files = write_report(folders, out, **more)
    assert all(file.is_file() for file in files)
    assert [file.name for file in files[:2]] == ["report.html", "report.md"]
    return (out / "report.md").read_text("utf-8"), (out / "report.html").read_text("utf-8")


def rows_of(text, heading="| run |") -> list[list[str]]:
    """Cells of the Markdown table with that heading, the heading first."""
    lines = text[text.index(heading) :].splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    assert set(table[1]) <= set("|-")
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (table[0], *table[2:])]
    assert len({len(row) for row in cells}) == 1
    return [[cell.strip() for cell in row] for row in cells]


def many_images(folder, **more):
    """25 images whose masks are 10 high: unmerged 9 wide, tome 6, structsam 9 and 8."""
    widths = {"unmerged": 9, "tome-r0.50": 6, "structsam-r0.25": 9, "structsam-r0.50": 8}
    truth = square(15, 20, 10, 10)
    for name, width in widths.items():
        rows = [row_of(f"image{i}", "1", 1, truth, square(15, 20, width, 10)) for i in range(25)]
        write_rows(folder, name, rows)
        write_times(folder, name, [100.0 * width])
    runs = [
        run_facts("tome-r0.50", "tome", 0.5),
        run_facts("structsam-r0.25", "structsam", 0.25),
        run_facts("structsam-r0.50", "structsam", 0.5),
        run_facts("unmerged"),
    ]
    write_facts(folder, runs, **more)
    return folder


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Folder, Markdown and page of the report of `many_images`. Read only."""
    folder = tmp_path_factory.mktemp("usual")
    problems = [{"image_id": f"x{i}", "kind": "too small", "detail": ""} for i in range(7)]
    left_out = [{"name": "tome-r0.70", "reason": "rate 0.7 is above the limit"}]
    many_images(folder / "results", problems=problems, left_out=left_out)
    return folder, *report(folder / "results", folder / "out", title="Merging of vit_t")


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """For tests of words: drawing takes most of the time."""
    monkeypatch.setattr(evaluation_report, "draw_curves", lambda summary, theme: None)


def test_every_run_is_in_the_table_with_its_numbers(usual) -> None:
    _, text, page = usual
    heading, base, tome, quarter, half = rows_of(text)
    assert heading[:5] == ["run", "tokens kept", "GMAC", "encoder ms", "mIoU"]
    assert base[:5] == [
        "**unmerged** (torch fp32)", "100 %", "40.0 (100 %)", "900 (100 %)",
        "0.9000 (0.9000 to 0.9000)",
    ]  # fmt: skip
    assert tome[:6] == [
        "tome 0.5 (torch fp32)", "50 %", "32.0 (80 %)", "600 (67 %)",
        "0.6000 (0.6000 to 0.6000)", "-0.3000 (-0.3000 to -0.3000), **worse**",
    ]  # fmt: skip
    assert quarter[5] == "0.0000 (0.0000 to 0.0000), **no difference**"
    assert half[5].startswith("-0.1000") and half[-1] == "25 in 25 images"
    assert tome[8] == "0.3333 (0.3333 to 0.3333)"  # 1 - 6 / 9
    assert "mIoU of 3 runs against the unmerged model: 1 no difference, 2 worse." in text
    for cell in ("0.6000", "-0.3000", "80 %", "no difference", "0.3333"):
        assert cell in page


def test_it_says_what_was_measured(usual) -> None:
    _, text, page = usual
    for words in (
        "segments, 4 images", "weights embedded (sha256 abababababab...)", "box, one mask, seed 0",
        "SAM: long side 1024", "a processor, 2 threads", "at most 5 per image",
        "structsam-export evaluate --model vit_t --dataset segments --root squares",
        "too small: 7 (x0, x1, x2, x3, x4 and 2 more)",
        "not run: tome-r0.70: rate 0.7 is above the limit", "bootstrap resamples",
    ):  # fmt: skip
        assert words in page
        assert markdown_cell(words) in text or words in text
    assert text.startswith("# Merging of vit\\_t\n")


def test_the_page_needs_no_other_file_and_markdown_has_its_pictures(usual) -> None:
    folder, text, page = usual
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) == 2 + 12
    assert len({s for s in sources if "png" in s[:20]}) == 2  # curves, light and dark
    assert all(s.startswith("data:image/") for s in sources)
    assert "http" not in page
    linked = re.findall(r"\]\((report_files/[^)]*)\)", text)
    assert len(linked) == 1 + 12
    for name in linked:
        Image.open(folder / "out" / name).verify()
    assert "prefers-color-scheme: dark" in page


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path, no_curves) -> None:
    folder = many_images(tmp_path / "results")
    report(folder, tmp_path / "out")
    report(folder, tmp_path / "out", gallery=1)
    names = {path.name for path in (tmp_path / "out" / "report_files").iterdir()}
    assert names == {"1-worst-01.jpg"}


def test_random_weights_are_the_first_thing_that_is_said(tmp_path, no_curves) -> None:
    random = {"name": "vit_t", "weights": "random", "sha256": None}
    folder = two_runs(tmp_path / "results", model=random)
    text, page = report(folder, tmp_path / "out")
    assert text.splitlines()[0] == f"**{RANDOM}**"
    assert page.split("<body>")[1].strip().startswith(f'<p class="verdict warning">{RANDOM}')
    assert RANDOM in caption(summarise(folder)) and findings(summarise(folder)) == ""
    both, page = report([many_images(tmp_path / "other"), folder], tmp_path / "out")
    assert both.splitlines()[0].startswith("**In section 2: random weights")
    trained, page = report(tmp_path / "other", tmp_path / "out")
    assert RANDOM not in trained and RANDOM not in page


def caption(summary) -> str:
    return str(summary_table(summary).caption)


def test_a_section_per_folder(tmp_path, no_curves) -> None:
    folders = [
        many_images(tmp_path / "a", dataset={"name": "segments", "title": "first set", "root": ""}),
        two_runs(tmp_path / "b", dataset={"name": "segments", "title": "second set", "root": ""}),
    ]
    text, page = report(folders, tmp_path / "out")
    assert "## 1. first set" in text and "## 2. second set" in text
    assert page.count("<section>") == 2
    assert (tmp_path / "out" / "report_files" / "2-worst-01.jpg").is_file()


def test_markup_in_names_stays_text(tmp_path, no_curves) -> None:
    folder = two_runs(tmp_path / "results")
    facts = json.loads((folder / "evaluation.json").read_text("utf-8"))
    facts["runs"][0]["label"] = "a|b <script>alert(1)</script> _x_"
    problems = [{"image_id": "<b>*|", "kind": "unreadable", "detail": ""}]
    write_facts(folder, facts["runs"], problems=problems)
    text, page = report(folder, tmp_path / "out")
    assert "<script>" not in page and "<b>" not in page and "&lt;script&gt;" in page
    rows_of(text)  # every row still has as many cells as the heading
    assert "a\\|b \\<script>" in text and "\\<b>\\*\\|" in text


def test_a_folder_without_baseline_is_reported_without_differences(tmp_path, no_curves) -> None:
    folder = two_runs(tmp_path / "results")
    write_facts(folder, [run_facts("structsam-r0.50", "structsam", 0.5)])
    text, page = report(folder, tmp_path / "out")
    assert rows_of(text)[1][4].startswith("0.6600") and rows_of(text)[1][5] == ""
    assert "There is no unmerged run, so" in text and "There is no unmerged run, so" in page
    assert "There is no unmerged run to compare with." in text.split("### Worst cases")[1]


def test_an_unfinished_run_and_one_image_are_said(tmp_path, no_curves) -> None:
    folder = two_runs(tmp_path / "results")
    runs = [
        run_facts("structsam-r0.50", "structsam", 0.5, complete=False),
        run_facts("unmerged"),
        run_facts("tome-r0.50", "tome", 0.5, complete=False),
    ]
    write_facts(folder, runs)
    text, page = report(folder, tmp_path / "out")
    assert "structsam 0.5: unfinished: 4 of 4 images" in text
    assert "tome 0.5: no rows: this run has not started" in page
    assert "Fewer than 6 images: differences may be luck, so none is judged." in text


def test_only_an_unmerged_run_has_no_curves_and_no_worst_cases(tmp_path) -> None:
    folder = two_runs(tmp_path / "results")
    write_facts(folder, [run_facts("unmerged")])
    text, page = report(folder, tmp_path / "out")
    assert "Curves" not in text and "<img" not in page
    assert "No mask lost 0.05 of IoU or more against the unmerged model." in text
    assert not (tmp_path / "out" / "report_files").exists()


def test_average_precision_has_columns(tmp_path, no_curves) -> None:
    truth = square(5, 5, 10, 10)
    write_rows(tmp_path / "r", "unmerged", [row_of("a", "1", 1, truth, truth, category="cat")])
    write_facts(tmp_path / "r", [run_facts("unmerged")])
    heading, base = rows_of(report(tmp_path / "r", tmp_path / "out")[0])
    assert dict(zip(heading, base, strict=True))["AP"] == "1.0000"
    assert "APl" not in heading  # the set has no large object


def test_a_report_never_lies_among_the_rows(tmp_path, no_curves, monkeypatch) -> None:
    folder = two_runs(tmp_path / "results")
    before = sorted(path for path in folder.rglob("*"))
    assert write_report([folder])[0] == tmp_path / "results-report" / "report.html"
    monkeypatch.chdir(folder)
    assert write_report(["."])[0].samefile(tmp_path / "results-report" / "report.html")
    for out in (folder, ".", "rows", folder / "timing"):
        with pytest.raises(UserError, match="holds the results themselves"):
            write_report([folder], out)
    assert sorted(path for path in folder.rglob("*")) == before


def test_the_table_fits_a_page_of_1200_pixels(tmp_path, no_curves) -> None:
    """With the four metrics of the default; a character of 15 or 12 pixels is half as wide."""
    folder = many_images(tmp_path / "results")
    for path in (folder / "rows").iterdir():  # Dice and NSD beside IoU and boundary IoU
        header, *lines = path.read_text("utf-8").splitlines()
        more = [line.split(",") for line in lines]
        wider = [",".join([*cells[:12], *cells[10:12], *cells[12:]]) for cells in more]
        header = header.replace("iou,boundary_iou", "iou,boundary_iou,dice,nsd")
        path.write_text("\n".join([header, *wider]) + "\n", "utf-8")
    _, page = report(folder, tmp_path / "out")
    table = page.split('<table class="results">')[1].split("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr")[2:]]
    assert {len(row) for row in rows} == {4 + 4 + 1 + 1}

    def pixels(cell: str) -> float:
        small = re.findall(r"<small>(.*?)</small>", cell)
        large = re.split(r"<[^>]*>", re.sub(r"<small>.*?</small>", "<>", cell))
        return max(6.6 * len(text) for text in small) if small else 8 * max(map(len, large))

    widths = [max(pixels(row[column]) for row in rows) + 11 for column in range(10)]
    assert sum(widths) < 1168


@pytest.mark.parametrize("gallery", [-1])
def test_a_negative_gallery_is_refused(tmp_path, gallery) -> None:
    with pytest.raises(UserError, match="out of range"):
        write_report([two_runs(tmp_path)], tmp_path / "out", gallery=gallery)


def test_what_is_no_results_folder_leaves_no_report(tmp_path) -> None:
    with pytest.raises(UserError, match="is no results folder"):
        write_report([two_runs(tmp_path / "a"), tmp_path / "b"], tmp_path / "out")
    with pytest.raises(UserError, match="no results folder is given"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def absent(name, *more, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *more, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"structsam\[eval\]"):
        write_report([two_runs(tmp_path / "a")], tmp_path / "out")


# Worst cases


def case_of(**more) -> gallery.WorstCase:
    from structsam.evaluation.mask_rle import encode

    truth, merged = square(20, 10, 10, 10), square(30, 10, 10, 10)
    case = gallery.WorstCase(
        "a", "1", "", "tome 0.5", 1.0, 0.0, (40, 60), encode(truth), encode(truth), encode(merged)
    )
    return replace(case, **more)


def test_the_worst_cases_are_the_largest_losses(tmp_path) -> None:
    """Losses of `two_runs` are 0, 0.5 (a, 2), 0, 0 and 0.6 (d, 1)."""
    found = gallery.worst_cases(summarise(two_runs(tmp_path)), 12)
    assert [(c.image_id, c.object_id) for c in found] == [("d", "1"), ("a", "2")]
    assert [(c.before, c.after) for c in found] == [(1.0, 0.4), (1.0, 0.5)]
    assert found[0].title == "d, object 1, structsam 0.5: IoU 1.000 unmerged, 0.400 merged"
    assert [case.image_id for case in gallery.worst_cases(summarise(tmp_path), 1)] == ["d"]
    assert gallery.worst_cases(summarise(tmp_path), 0) == []


def test_a_loss_that_nobody_sees_is_no_worst_case(tmp_path, no_curves) -> None:
    folder = two_runs(tmp_path / "results")
    truth = square(15, 20, 10, 10)
    for name, merged in (("unmerged", "0.9"), ("structsam-r0.50", "0.898")):
        write_rows(folder, name, [row_of("a", "1", 1, truth, truth, iou=merged)])
    assert gallery.worst_cases(summarise(folder), 12) == []
    words = "No mask lost 0.05 of IoU or more against the unmerged model."
    assert all(words in each for each in report(folder, tmp_path / "out"))
    text, page = report(two_runs(tmp_path / "seen"), tmp_path / "out")
    assert "at least 0.05" in text and "at least 0.05" in page


def test_runs_take_turns_and_an_object_is_shown_once(tmp_path) -> None:
    """tome loses most on every image, and must not fill the gallery."""
    found = gallery.worst_cases(summarise(many_images(tmp_path)), 6)
    assert len({case.image_id for case in found}) == 6
    assert [case.run for case in found] == ["tome 0.5"] * 3 + ["structsam 0.5"] * 3


def middle(picture, panel, x, y):
    """Colour of a panel at a place in 0..1 of it."""
    at = (panel * (gallery._SIDE + gallery._GAP) + x * gallery._SIDE, y * gallery._SIDE)
    return picture.getpixel((round(at[0]), round(at[1]) + gallery._STRIP))


def near(color, expected) -> bool:
    return max(abs(a - b) for a, b in zip(color, expected, strict=True)) < 25


def test_a_case_is_drawn_as_truth_unmerged_and_merged() -> None:
    """The crop is all 40 rows and 48 columns from 6: truth is columns 14 to 24 of 48, the
    merged mask the 10 columns right of it, both in rows 10 to 20 of 40."""
    picture = gallery.draw_case(case_of(), np.full((40, 60, 3), 90, np.uint8))
    high = 40 / 48
    at_truth, beside = (19 / 48, 15 / 40 * high), (29 / 48, 15 / 40 * high)
    photo = (90, 90, 90)
    mixed = {c: tuple(0.5 * a + 45 for a in c) for c in (gallery._UNMERGED, gallery._MERGED)}
    assert near(middle(picture, 0, *at_truth), photo) and near(middle(picture, 0, *beside), photo)
    assert near(middle(picture, 1, *at_truth), mixed[gallery._UNMERGED])
    assert near(middle(picture, 1, *beside), photo)
    assert near(middle(picture, 2, *at_truth), photo)
    assert near(middle(picture, 2, *beside), mixed[gallery._MERGED])
    for panel in range(3):  # the truth's outline is on all three
        assert near(middle(picture, panel, 14 / 48, 15 / 40 * high), gallery._TRUTH)


def test_without_a_photo_masks_are_drawn_on_grey() -> None:
    picture = gallery.draw_case(case_of(), None)
    assert near(middle(picture, 0, 0.4, 0.3), (gallery._BLANK,) * 3)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.tuples(*[st.floats(0, 0.999)] * 2)),
    st.data(),
)
def test_a_crop_holds_every_pixel_of_the_mask(height, width, pixels, data) -> None:
    mask = np.zeros((height, width), bool)
    for y, x in pixels:
        mask[int(y * height), int(x * width)] = True
    crop = gallery.crop_around(mask)
    assert mask[crop].sum() == mask.sum()
    rows, columns = mask[crop].shape
    assert 1 <= rows <= height and 1 <= columns <= width
    if pixels:
        assert min(rows, height) == min(height, max(rows, columns)) or rows == height


class Shelf:
    """A dataset of one grey photo."""

    def __init__(self, photo=None) -> None:
        self.photo, self.loads = photo, 0

    def load(self, image_id):
        self.loads += 1
        if self.photo is None:
            raise UserError(f"{image_id} is damaged")
        return type("Sample", (), {"image": self.photo})


def drawn(tmp_path, monkeypatch, shelf, cases):
    from structsam.evaluation import datasets

    monkeypatch.setattr(datasets, "open_dataset", lambda name, root: shelf, raising=False)
    summary = summarise(
        two_runs(tmp_path / "results", dataset={"name": "x", "root": str(tmp_path)})
    )
    pictures, note = gallery.draw_gallery(summary, cases)
    return [Image.open(io.BytesIO(data)) for _, data in pictures], note


def test_photos_come_from_the_dataset_and_are_loaded_once(tmp_path, monkeypatch) -> None:
    shelf = Shelf(np.full((40, 60, 3), (200, 30, 30), np.uint8))
    (first, _), note = drawn(tmp_path, monkeypatch, shelf, [case_of(), case_of(object_id="2")])
    assert near(middle(first, 0, 0.2, 0.7), (200, 30, 30)) and note == ""
    assert shelf.loads == 1


@pytest.mark.parametrize(
    ("photo", "words"),
    [(None, "cannot be loaded"), (np.zeros((8, 8, 3), np.uint8), "another size than its masks")],
)
def test_a_photo_that_cannot_be_had_is_said(tmp_path, monkeypatch, photo, words) -> None:
    (picture,), note = drawn(tmp_path, monkeypatch, Shelf(photo), [case_of()])
    assert words in note
    assert near(middle(picture, 0, 0.2, 0.7), (gallery._BLANK,) * 3)


def test_a_dataset_that_is_not_there_is_said_in_the_report(tmp_path, no_curves) -> None:
    text, page = report(two_runs(tmp_path / "results"), tmp_path / "out")
    words = "Masks without their photos: the dataset is not at squares"
    assert words in text and words in page


# Curves and words


def test_a_line_per_method_and_setting(tmp_path) -> None:
    runs = [
        run_facts("unmerged"),
        run_facts("a", "tome", 0.25),
        run_facts("b", "tome", 0.5),
        run_facts("c", "structsam", 0.5),
        run_facts("d", "structsam", 0.5, merging={**METHOD, "method": "structsam", "rate": 0.5,
                                                  "layers": "global"}),
    ]  # fmt: skip
    write_facts(tmp_path, runs)
    lines = series_of(summarise(tmp_path).runs[1:])
    assert {name: [r.name for r in found] for name, found in lines.items()} == {
        "tome, all layers": ["a", "b"],
        "structsam, all layers": ["c"],
        "structsam, global layers": ["d"],
    }
    plain = series_of(summarise(tmp_path).runs[1:4])
    assert list(plain) == ["tome", "structsam"]  # what all share is not said


def test_curves_show_every_run_at_its_cost(tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    plotted: list[tuple[str, list[float], list[float]]] = []
    real = Axes.errorbar

    def spy(self, x, y, **more):
        plotted.append((more["label"], list(x), list(y)))
        return real(self, x, y, **more)

    monkeypatch.setattr(Axes, "errorbar", spy)
    picture = draw_curves(summarise(many_images(tmp_path)), LIGHT)
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert len(plotted) == 2 * 3 * 2  # metrics, costs, methods
    gmac = [line for line in plotted if line[0] == "structsam" and line[1] == [32.0, 36.0]]
    assert [y for _, _, y in gmac] == [pytest.approx([0.8, 0.9]), pytest.approx([0.7, 0.8])]
    assert ("tome", [600.0], pytest.approx([0.6])) in plotted
    kept = next(line[1] for line in plotted if line[0] == "structsam")
    assert kept == pytest.approx([50, 75], abs=1)


def test_dark_curves_are_dark(tmp_path) -> None:
    summary = summarise(many_images(tmp_path))
    corners = [
        Image.open(io.BytesIO(draw_curves(summary, theme))).convert("RGB").getpixel((2, 2))
        for theme in (LIGHT, DARK)
    ]
    assert corners == [(255, 255, 255), (27, 33, 44)]


def test_kept_tokens_in_words() -> None:
    assert kept_tokens({"window": 0.5, "global": 0.5, "all": 0.5}) == "50 %"
    assert kept_tokens({"window": 1.0, "global": 0.5, "all": 0.8333}).startswith("83 % (window")
    assert kept_tokens(None) == "" and kept_share(None) is None
    assert kept_share({"window": 1.0, "global": 0.5}) == 0.75


def test_the_terminal_shows_the_same_numbers(tmp_path) -> None:
    summary = summarise(many_images(tmp_path))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    shown = console.export_text()
    for words in ("unmerged", "-0.3000 worse", "0.0000 no difference", "32.0 (80 %)"):
        assert words in shown
    assert findings(summary) in shown
