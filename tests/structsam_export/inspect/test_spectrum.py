"""The spectrum study on a tiny SAM: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from rich.console import Console
from segment_anything.modeling.image_encoder import window_partition

from structsam import apply_merging
from structsam.apply import merged_blocks
from structsam.errors import UserError
from structsam.methods import METHODS, choose_methods
from structsam.methods.structsam import StructSAM
from structsam.recording import record_plans
from structsam.spectrum import layer_discrepancy, slot_dissimilarity
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.spectrum import run, spectrum_choices, spectrum_study
from structsam_export.inspect.spectrum_report import (
    BlockSpectrum,
    SpectrumReport,
    SpectrumRow,
    figure_of,
    save_report,
    spectrum_table,
)


@dataclass(frozen=True)
class SharpestCells(StructSAM):
    """Merges what StructSAM protects, and allows less."""

    name: ClassVar[str] = "sharpest"
    max_rate: ClassVar[float] = 0.55
    rate_limit = 0.55

    def token_energy(self, feature_map):
        return 1 / (1 + super().token_energy(feature_map))


@pytest.fixture(autouse=True)
def two_methods(one_torch_thread) -> Iterator[None]:
    """The study must work with any registry; these tests need two entries, one with a low cap."""
    everything = dict(METHODS)
    METHODS.clear()
    METHODS.update(structsam=everything["structsam"], sharpest=SharpestCells)
    yield
    METHODS.clear()
    METHODS.update(everything)  # in the order that tables have


@pytest.fixture
def image(rng):
    return rng.normal(size=(1, 3, 256, 256)).astype("float32")


def smooth_image():
    """Flat areas and one edge, so that the choice of cells matters."""
    pixels = torch.linspace(0, 1, 256).expand(1, 3, 256, 256).clone()
    pixels[..., 60:150, 90:200] += 3
    return pixels.numpy()


@pytest.fixture
def study(tiny_spec):
    """Measure methods at rates on the tiny SAM."""

    def measured(sam, images, methods, rates, layers="all", options=(), **more):
        merging = spectrum_choices(tiny_spec, methods, rates, layers, options)
        return spectrum_study(sam, images, merging, **more)

    return measured


def test_discrepancies_are_those_of_the_stock_tokens_and_the_blocks_plans(
    study, tiny_sam_factory, image
) -> None:
    rows = study(tiny_sam_factory(), [image], ["structsam"], [0.5])
    assert [(b.index, b.kind, b.tokens, b.slots) for b in rows[0].blocks] == [
        (0, "window", 196, 97),
        (1, "global", 256, 127),
        (2, "window", 196, 97),
    ]
    stock, merged = tiny_sam_factory(), tiny_sam_factory()
    apply_merging(merged, method="structsam", rate=0.5)
    x = stock.image_encoder.patch_embed(torch.from_numpy(image)) + stock.image_encoder.pos_embed
    expected, unlike = [], []
    for index, block in enumerate(stock.image_encoder.blocks):
        with record_plans(merged) as planned:
            merged_blocks(merged)[index](x)
        tokens = block.norm1(x)
        if block.window_size:
            tokens, _ = window_partition(tokens, block.window_size)
        plan = planned[index].plan
        merging = tokens.flatten(1, 2), plan.slot_of_token, plan.num_slots
        expected.append(layer_discrepancy(*merging).mean().item())
        unlike.append(slot_dissimilarity(*merging).mean().item())
        x = block(x)
    assert [b.discrepancy for b in rows[0].blocks] == pytest.approx(expected, rel=1e-9)
    assert [b.dissimilarity for b in rows[0].blocks] == pytest.approx(unlike, rel=1e-9)
    assert rows[0].encoder == pytest.approx(sum(expected))
    assert rows[0].dissimilarity == pytest.approx(sum(unlike) / 3)
    assert rows[0].kept == "97 of 196, 127 of 256"


def test_protecting_edges_keeps_the_spectrum_better_than_merging_them(
    study, tiny_sam_factory
) -> None:
    rows = study(tiny_sam_factory(), [smooth_image()], ["structsam", "sharpest"], [0.25, 0.5])
    sums = {(row.method, row.rate): row.encoder for row in rows}
    for rate in (0.25, 0.5):
        assert sums["structsam", rate] < sums["sharpest", rate]
    assert sums["structsam", 0.25] < sums["structsam", 0.5]


def test_options_reach_the_methods(study, tiny_sam_factory) -> None:
    sam, photo = tiny_sam_factory(), [smooth_image()]
    (flat,) = study(sam, photo, ["structsam"], [0.5])
    (random,) = study(sam, photo, ["structsam"], [0.5], options={"cells": "random"})
    assert flat.encoder < random.encoder
    (large,) = study(sam, photo, ["structsam"], [0.8], "global", options={"cell_size": 4})
    assert large.note == "", "the cap is that of the method with its options"


def test_images_are_averaged(study, tiny_sam_factory, image) -> None:
    sam, other = tiny_sam_factory(), smooth_image()
    one, two, both = (
        study(sam, images, ["structsam"], [0.5])[0].blocks
        for images in ([image], [other], [image, other])
    )
    for a, b, mean in zip(one, two, both, strict=True):
        assert a.discrepancy != b.discrepancy
        assert mean.discrepancy == pytest.approx((a.discrepancy + b.discrepancy) / 2)
        assert mean.dissimilarity == pytest.approx((a.dissimilarity + b.dissimilarity) / 2)


@pytest.mark.parametrize(
    ("layers", "indices"), [("global", [1]), ("window", [0, 2]), ([2], [2]), ("all", [0, 1, 2])]
)
def test_only_the_chosen_layers_are_measured(
    study, tiny_sam_factory, image, layers, indices
) -> None:
    (row,) = study(tiny_sam_factory(), [image], ["structsam"], [0.5], layers)
    assert [block.index for block in row.blocks] == indices


def test_a_rate_above_a_cap_is_a_row_and_the_others_are_measured(
    study, tiny_sam_factory, image
) -> None:
    rows = study(tiny_sam_factory(), [image], ["sharpest", "structsam"], [0.5, 0.6])
    assert [(row.method, row.rate, row.note) for row in rows] == [
        ("sharpest", 0.5, ""),
        ("structsam", 0.5, ""),
        ("sharpest", 0.6, "not available: cap 0.55"),
        ("structsam", 0.6, ""),
    ]
    assert rows[2].blocks == () and rows[2].encoder is None
    assert all(len(row.blocks) == 3 for row in rows if not row.note)


def test_the_model_is_stock_afterwards_and_every_plan_hook_is_gone(
    study, tiny_sam_factory, image
) -> None:
    sam = tiny_sam_factory()
    pixels = torch.from_numpy(image)
    before = sam.image_encoder(pixels)
    study(apply_merging(sam, rate=0.25), [image], ["structsam"], [0.5])
    assert merged_blocks(sam) == []
    assert torch.equal(sam.image_encoder(pixels), before)
    assert all(not block._forward_pre_hooks for block in sam.image_encoder.blocks)


def test_the_stock_tokens_are_computed_once_per_image(study, tiny_sam_factory, image) -> None:
    sam, calls = tiny_sam_factory(), []
    sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    said: list[str] = []
    methods = ["structsam", "sharpest"]
    study(sam, [image, image], methods, [0.25, 0.5], say=said.append)
    assert len(calls) == 2
    assert said[:3] == [
        "image 1 of 2: tokens of the stock model",
        "image 1 of 2: structsam at rate 0.25",
        "image 1 of 2: sharpest at rate 0.25",
    ]
    assert len(said) == 2 * (1 + 4)


def test_a_block_is_left_as_soon_as_it_has_planned(study, tiny_sam_factory, image) -> None:
    sam, ended = tiny_sam_factory(), []
    for block in sam.image_encoder.blocks:
        block.norm2.register_forward_hook(lambda *_: ended.append(1))
    study(sam, [image], ["structsam"], [0.25, 0.5])
    assert len(ended) == 3, "only the stock pass goes on behind attention"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [7]}, "layer 7 does not exist"),
        ({"layers": "some"}, "unknown layers 'some'"),
        ({"rates": [0.9]}, r"outside \[0, 0.75\]"),
        ({"methods": ["nosuch"]}, "unknown method 'nosuch'"),
        ({"graph": "nosuch"}, "unknown graph 'nosuch'"),
        ({"images": []}, "no image"),
        ({"methods": []}, "no method"),
    ],
)
def test_a_study_that_cannot_be_is_refused(study, tiny_sam_factory, image, change, message) -> None:
    arguments = {"images": [image], "methods": ["structsam"], "rates": [0.5], **change}
    with pytest.raises(UserError, match=message):
        study(tiny_sam_factory(), **arguments)


def test_methods_are_chosen_by_name() -> None:
    assert choose_methods("all") == ["structsam", "sharpest"]
    assert choose_methods("sharpest, structsam,sharpest") == ["sharpest", "structsam"]
    assert choose_methods(["sharpest"]) == ["sharpest"]
    for wrong in ("nosuch", "", "structsam,nosuch"):
        with pytest.raises(UserError, match="unknown method"):
            choose_methods(wrong)
    with pytest.raises(UserError, match="no method"):
        choose_methods([])


def run_on(model, images=(), rates=(0.25, 0.5), weights="random", **more):
    source = ModelSource(model, weights=weights)
    return run(source, spectrum_choices(source.spec, "all", rates), images, **more)


def test_a_run_writes_table_facts_and_picture(tiny_model, tiny_photo, tmp_path) -> None:
    said: list[str] = []
    report = run_on(
        tiny_model,
        [tiny_photo],
        rates=(0.5, 0.6),
        out=tmp_path / "new" / "spectrum",
        say=said.append,
    )
    assert said[0] == "loading tiny" and said[-1] == "writing the report"
    names = ["spectrum.csv", "spectrum.json", "spectrum.png"]
    assert [file.name for file in report.files] == names
    assert sorted(p.name for p in (tmp_path / "new" / "spectrum").iterdir()) == names

    lines = list(csv.DictReader(report.files[0].open(encoding="utf-8")))
    assert [line["block"] for line in lines] == ["0", "1", "2", "all"] * 3 + ["all"]
    first = report.rows[0]
    assert float(lines[1]["discrepancy"]) == first.blocks[1].discrepancy
    assert float(lines[3]["discrepancy"]) == first.encoder
    assert (lines[1]["tokens"], lines[1]["slots"], lines[1]["kind"]) == ("256", "127", "global")
    assert {line["weights"] for line in lines} == {"random weights, seed 0"}
    assert lines[-1]["note"] == "not available: cap 0.55"

    facts = json.loads(report.files[1].read_text("utf-8"))
    assert facts["images"] == [tiny_photo.name]
    assert facts["rows"] == [row.to_dict() for row in report.rows]
    assert facts["rows"][0]["encoder_sum"] == first.encoder
    assert report.files[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rates", [0, [0.5, 1], [-0.1], [float("nan")], ["0.5"], [True], []])
def test_rates_that_are_no_share_are_refused(tiny_model, tiny_photo, tmp_path, rates) -> None:
    with pytest.raises(UserError, match="rate"):
        run_on(tiny_model, [tiny_photo], rates=rates, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [{"images": ["nosuch.png"]}, {"model": "nosuch"}, {"weights": None}]
)
def test_input_that_cannot_be_used_writes_nothing(tiny_photo, tiny_model, tmp_path, change) -> None:
    arguments = {"model": tiny_model, "images": [tiny_photo], "weights": "random", **change}
    with pytest.raises(UserError):
        run_on(**arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_matplotlib_says_what_to_install(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    with pytest.raises(UserError, match=r"pip install 'structsam\[eval\]'"):
        run_on(tiny_model, out=tmp_path / "out", say=said.append)
    assert said == [], "told before the work"
    assert not (tmp_path / "out").exists()


def small_report(depth=3):
    def blocks(scale):
        kinds = ["global" if i == 1 else "window" for i in range(depth)]
        return tuple(
            BlockSpectrum(i, kind, 196, 97, scale * (i + 1), 0.03 * (i + 1))
            for i, kind in enumerate(kinds)
        )

    rows = (
        SpectrumRow("structsam", 0.25, blocks(0.1)),
        SpectrumRow("sharpest", 0.25, blocks(0.2)),
        SpectrumRow("structsam", 0.5, blocks(1.0)),
        SpectrumRow("sharpest", 0.5, note="not available: cap [x]"),
    )
    return SpectrumReport("tiny", "random weights, seed 0", "affinity", "all", ("a.png",), rows)


def test_the_picture_shows_every_point_of_every_rate() -> None:
    figure = figure_of(small_report())
    assert [panel.get_title() for panel in figure.axes] == ["rate 0.25", "rate 0.5"]
    assert [len(panel.patches) for panel in figure.axes] == [1, 1], "the global block is shaded"
    for panel, count in zip(figure.axes, (2, 1), strict=True):
        drawn = [line for line in panel.get_lines() if len(line.get_xdata())]
        assert len(drawn) == count
        low, high = panel.get_ylim()
        assert low == 0
        for line in drawn:
            assert max(line.get_ydata()) <= high
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend == ["structsam: kept 97 of 196; sum 6", "sharpest: not available: cap [x]"]


def test_a_failed_picture_leaves_no_half_report(tmp_path, monkeypatch) -> None:
    from structsam_export.inspect import spectrum_report

    def fail(_report):
        raise RuntimeError("drawing failed")

    monkeypatch.setattr(spectrum_report, "draw", fail)
    with pytest.raises(RuntimeError, match="drawing failed"):
        save_report(small_report(), tmp_path / "out")
    assert not list(tmp_path.rglob("*"))


def text_of(table) -> str:
    file = io.StringIO()
    Console(width=250, file=file).print(table)
    return file.getvalue()


def test_the_table_shows_blocks_sum_tokens_and_what_is_missing() -> None:
    text = text_of(spectrum_table(small_report()))
    line = next(line for line in text.splitlines() if "sharpest" in line and "0.25" in line)
    assert all(
        number in line for number in ("97 of 196", "0.200", "0.400", "0.600", "1.200", "0.060")
    )
    assert "not available: cap [x]" in text
    assert "tiny, random weights, seed 0" in text


def test_the_table_of_a_deep_encoder_shows_means() -> None:
    text = text_of(spectrum_table(small_report(depth=32)))
    assert "window mean" in text and "global mean" in text
    line = next(line for line in text.splitlines() if "structsam" in line and "0.25" in line)
    assert "0.200" in line  # the one global block
    assert "52.800" in line  # 0.1 * (1 + ... + 32)
