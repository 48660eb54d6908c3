"""Parity passes on a good bundle, and every planted fault makes it fail: the checker is checked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import IMAGE_EMBEDDINGS, PartName
from structsam_export.parity import check as parity_check
from structsam_export.parity.check import check
from structsam_export.parity.compare import GATES, ParityReport, ParityRow, compare
from structsam_export.parity.page import drawn_prompts
from structsam_export.parity.reference import Reference, load_reference, prompt_grid
from structsam_export.predict.preprocessing import (
    ImageGeometry,
    Photo,
    image_geometry,
    read_photo,
)
from structsam_export.runtimes import RunOptions
from tests.structsam_export.conftest import Exported

onnx = pytest.importorskip("onnx")
numpy_helper = onnx.numpy_helper


def edit_onnx(bundle: Bundle, part: PartName, edit: Callable[[Any], None]) -> None:
    """Change a graph as a faulty exporter would have: the manifest fits the new file."""
    file = bundle.onnx_path(part)
    model = onnx.load(file)
    edit(model)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    bundle.record_file(file.name)
    bundle.save_manifest()


def change_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))

    return edit


def one_percent_off_in_half_of_the_channels(weight: np.ndarray) -> np.ndarray:
    return weight * np.where(np.arange(len(weight)) % 2, 1.01, 1.0)[:, None, None, None]


def transpose_output(model: Any) -> None:
    for node in model.graph.node:
        node.output[:] = ["straight" if n == "image_embeddings" else n for n in node.output]
    model.graph.node.append(
        onnx.helper.make_node("Transpose", ["straight"], ["image_embeddings"], perm=[0, 1, 3, 2])
    )


def swap_two_slots(model: Any) -> None:
    """Exchange slots 0 and 1 of the global block for every reader, the output among them."""
    (shown,) = [node for node in model.graph.node if "slot_of_token.1" in node.output]
    assert shown.op_type == "Cast"  # to int32
    name = shown.input[0]
    (position,) = [i for i, node in enumerate(model.graph.node) if name in node.output]
    slots = numpy_helper.from_array(np.array([1, 0, *range(2, 127)], np.int64), "swap")
    model.graph.node[position].output[:] = ["right"]
    model.graph.initializer.append(slots)
    model.graph.node.insert(
        position + 1, onnx.helper.make_node("Gather", ["swap", "right"], [name], axis=0)
    )


FAULTS: dict[str, tuple[PartName, Callable[[Any], None], str]] = {
    "encoder weight 1 % off": (
        "encoder",
        change_weight("encoder.neck.0.weight", one_percent_off_in_half_of_the_channels),
        "relative_l2",
    ),
    "one encoder weight off": (
        "encoder",
        change_weight("encoder.patch_embed.proj.bias", lambda w: w + (np.arange(w.size) == 3)),
        "relative_l2",
    ),
    "output transposed": ("encoder", transpose_output, "relative_l2"),
    "slots exchanged": ("encoder", swap_two_slots, "relative_l2"),
    "encoder gives NaN": (
        "encoder",
        change_weight("encoder.neck.2.weight", lambda w: w * np.nan),
        "relative_l2",
    ),
    "decoder weight changed": (
        "decoder",
        change_weight("decoder.output_upscaling.3.weight", lambda w: w[::-1]),
        "mean_mask_iou",
    ),
    "masks in another order": (
        "decoder",
        change_weight("decoder.output_hypernetworks_mlps.2.layers.0.weight", lambda w: -w),
        "mean_mask_iou",
    ),
    "scores changed": (
        "decoder",
        change_weight("decoder.iou_prediction_head.layers.2.weight", lambda w: -w),
        "max_score_error",
    ),
    "decoder gives NaN": (
        "decoder",
        change_weight("decoder.output_upscaling.3.weight", lambda w: w * np.nan),
        "mean_mask_iou",
    ),
}


def only_row(report: ParityReport) -> ParityRow:
    (row,) = report.rows
    return row


def test_fp32_passes(own_bundle: Bundle) -> None:
    report = check(own_bundle, "onnxruntime")
    row = only_row(report)
    assert report and row.status == "passed"
    assert row.metrics["relative_l2"] <= 1e-4
    assert row.metrics["mean_mask_iou"] >= 0.999
    assert row.metrics["same_slot"] == 1.0 and set(row.same_slot) == {0, 1, 2}
    assert report.verdict() == "parity passed (fp32)"
    written = json.loads((own_bundle.path / "parity.json").read_text())
    assert written == json.loads(json.dumps(report.to_dict())) and written["passed"] is True
    opened = open_bundle(own_bundle.path)
    assert opened.manifest["parity"] == {
        "passed": True,
        "verdict": report.verdict(),
        "backends": {"onnxruntime": "passed"},
    }


@pytest.mark.slow
def test_fp16_is_near_and_is_fp16(tiny_export_factory: Callable[[str], Exported]) -> None:
    """Whole models pass at FP16 (test_ahead_of_time); masks of the tiny one are a few pixels."""
    exported = tiny_export_factory("fp16")
    row = only_row(exported.report)
    assert row.metrics["cosine"] > 0.999 and row.metrics["max_score_error"] < 0.05
    assert row.metrics["mean_mask_iou"] > 0.98
    assert 1e-5 < row.metrics["relative_l2"] < 1e-2  # else it was not FP16
    assert open_bundle(exported.path).precision == "fp16"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(own_bundle: Bundle, tiny_model: str, fault: str) -> None:
    part, edit, metric = FAULTS[fault]
    edit_onnx(own_bundle, part, edit)
    report = check(open_bundle(own_bundle.path), "onnxruntime")
    row = only_row(report)
    assert not report and row.status == "failed"
    assert "parity FAILED: onnxruntime on scene.png" in report.verdict()
    # the verdict names the metric, its value, and its gate
    direction, gate = GATES["fp32"][metric]
    assert f"{metric} {row.metrics[metric]:.6g} (gate {gate:g})" in report.verdict()
    assert (row.metrics[metric] > gate) if direction == "max" else (row.metrics[metric] < gate)
    if part == "decoder":
        assert row.metrics["relative_l2"] <= 1e-4
    if fault == "slots exchanged":
        assert row.metrics["same_slot"] < 1.0
    assert open_bundle(own_bundle.path).manifest["parity"]["passed"] is False
    assert "FAILED" in (own_bundle.path / "parity.html").read_text()


def test_a_report_with_values_that_are_not_finite_is_json(own_bundle: Bundle) -> None:
    part, edit, _ = FAULTS["encoder gives NaN"]
    edit_onnx(own_bundle, part, edit)
    assert not check(own_bundle, "onnxruntime")
    text = (own_bundle.path / "parity.json").read_text()
    assert json.loads(text)["passed"] is False


def test_a_report_with_values_that_are_not_finite_is_strict_json(own_bundle: Bundle) -> None:
    part, edit, _ = FAULTS["encoder gives NaN"]
    edit_onnx(own_bundle, part, edit)
    check(own_bundle, "onnxruntime")
    text = (own_bundle.path / "parity.json").read_text()
    assert not re.search(r"\b(NaN|Infinity)\b", text)


def small_reference(rng: np.random.Generator) -> Reference:
    slots = np.array([[0, 0, 1, 2], [0, 1, 2, 2]])
    anchors = np.array([[0, 2, 3], [0, 1, 3]])
    rgb, pixels = np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.float32)
    return Reference(
        photo=Photo(Path("photo.png"), rgb, pixels, ImageGeometry((8, 8), (8, 8), 8)),
        features={IMAGE_EMBEDDINGS: rng.normal(size=(1, 4, 2, 2)).astype(np.float32)},
        plans={3: (slots, anchors)},
        energies={},
        masks=rng.random((2, 4, 8, 8)) > 0.5,
        scores=rng.random((2, 4)).astype(np.float32),
    )


def scaled(reference: Reference, factor: float) -> dict[str, np.ndarray]:
    return {name: factor * array for name, array in reference.features.items()}


def plans_of(reference: Reference) -> dict[str, np.ndarray]:
    slots, anchors = reference.plans[3]
    return {"slot_of_token.3": slots.copy(), "anchor_of_slot.3": anchors.copy()}


def test_compare_equal(rng: np.random.Generator) -> None:
    reference = small_reference(rng)
    equal = (reference.features, reference.masks, reference.scores)
    metrics, same = compare(reference, *equal, plans_of(reference))
    assert metrics["cosine"] == pytest.approx(1) and metrics["relative_l2"] == 0
    assert metrics["max_abs"] == metrics["max_score_error"] == 0
    assert metrics["min_mask_iou"] == metrics["mean_mask_iou"] == 1
    assert same == {3: 1.0} and metrics["same_slot"] == 1.0
    metrics, same = compare(reference, *equal, None)
    assert same == {} and "same_slot" not in metrics


def test_compare_counts_tokens_by_their_destination(rng: np.random.Generator) -> None:
    reference = small_reference(rng)
    renumbered = {
        "slot_of_token.3": np.array([[1, 1, 0, 2], [0, 1, 2, 2]]),
        "anchor_of_slot.3": np.array([[2, 0, 3], [0, 1, 3]]),
    }
    equal = (reference.features, reference.masks, reference.scores)
    _, same = compare(reference, *equal, renumbered)
    assert same == {3: 1.0}
    swapped = plans_of(reference)
    swapped["slot_of_token.3"][0] = [1, 1, 0, 2]  # two slots exchanged, their anchors not
    metrics, same = compare(reference, *equal, swapped)
    assert same == {3: 5 / 8} and metrics["same_slot"] == 5 / 8


def test_compare_measures_what_it_says(rng: np.random.Generator) -> None:
    reference = small_reference(rng)
    scores = reference.scores.copy()
    scores[1, 2] -= 0.25
    metrics, _ = compare(reference, scaled(reference, 2), ~reference.masks, scores, None)
    assert metrics["max_score_error"] == pytest.approx(0.25)
    assert metrics["relative_l2"] == pytest.approx(1) and metrics["cosine"] == pytest.approx(1)
    assert metrics["max_abs"] == pytest.approx(np.abs(reference.embedding).max())
    assert metrics["mean_mask_iou"] == 0
    scores[0, 0] = np.nan
    metrics, _ = compare(reference, scaled(reference, -1), reference.masks, scores, None)
    assert metrics["cosine"] == pytest.approx(-1) and metrics["max_score_error"] == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails_every_gate(
    rng: np.random.Generator, value: float
) -> None:
    reference = small_reference(rng)
    embedding = reference.embedding.copy()
    embedding[0, 0, 0, 0] = value
    same = (reference.masks, reference.scores, None)
    metrics, _ = compare(reference, {IMAGE_EMBEDDINGS: embedding}, *same)
    assert metrics["cosine"] == -1 and metrics["relative_l2"] == metrics["max_abs"] == np.inf
    zero, _ = compare(reference, scaled(reference, 0), *same)
    assert zero["cosine"] == -1 and zero["relative_l2"] == 1


def row(status: str, backend: str = "b", **metrics: float) -> ParityRow:
    good = {"cosine": 1.0, "relative_l2": 0.0, "mean_mask_iou": 1.0, "min_mask_iou": 1.0}
    good["max_score_error"] = 0.0
    reason = "it is absent" if status == "not run" else ""
    values = {} if status == "not run" else good | metrics
    return ParityRow(backend, "photo.png", status, reason, values)


@pytest.mark.parametrize(
    ("statuses", "good"),
    [
        ([], False),
        (["not run"], False),
        (["not run", "not run"], False),
        (["not run", "passed"], True),
        (["passed", "failed"], False),
        (["failed"], False),
    ],
)
def test_a_report_is_true_only_when_something_ran_and_nothing_failed(
    statuses: list[str], good: bool
) -> None:
    report = ParityReport("bundle", "fp32", False, [row(status) for status in statuses])
    assert bool(report) is good and report.to_dict()["passed"] is good


def test_verdicts() -> None:
    def verdict(*rows: ParityRow, precision: str = "fp32") -> str:
        return ParityReport("bundle", precision, False, list(rows)).verdict()

    assert verdict() == "parity not run: no backend was asked"
    assert verdict(row("not run"), row("not run", "c")) == "parity not run: it is absent"
    text = verdict(row("passed"), row("failed", "onnxruntime", relative_l2=3e-3))
    assert "onnxruntime on photo.png: relative_l2 0.003 (gate 0.0001)" in text
    assert "mean_mask_iou" not in text
    text = verdict(row("failed", min_mask_iou=0.9, cosine=0.5), precision="fp16")
    assert "cosine 0.5 (gate 0.999)" in text and "min_mask_iou 0.9 (gate 0.95)" in text


def test_a_backend_that_cannot_run_is_not_run(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.runtimes import BACKENDS

    monkeypatch.setattr(BACKENDS["onnxruntime-cuda"], "why_unavailable", lambda: "no such GPU")
    before = (own_bundle.path / "parity.json").read_text()
    report = check(own_bundle, "onnxruntime-cuda")
    assert (own_bundle.path / "parity.json").read_text() == before  # nothing ran: the verdict stays
    assert open_bundle(own_bundle.path).manifest["parity"]["passed"]
    assert report.exit_code == 2
    (row,) = report.rows
    assert not report and (row.status, row.reason, row.metrics) == ("not run", "no such GPU", {})
    assert report.verdict() == "parity not run: no such GPU"
    both = check(own_bundle, "onnxruntime", require=[])
    assert both and both.exit_code == 0
    with pytest.raises(UserError, match="required backend onnxruntime-cuda cannot run: no such"):
        check(own_bundle, "onnxruntime", require=["onnxruntime-cuda"])
    with pytest.raises(UserError, match="unknown backend 'onyx'"):
        check(own_bundle, "onyx")
    with pytest.raises(UserError, match="unknown backend 'onyx'"):
        check(own_bundle, "onnxruntime", require=["onyx"])


def test_a_required_backend_is_judged_before_anything_runs(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.runtimes import BACKENDS

    def ran(*_: object) -> None:
        raise AssertionError("the other backend was run first")

    monkeypatch.setattr(BACKENDS["onnxruntime-cuda"], "why_unavailable", lambda: "no such GPU")
    monkeypatch.setattr(parity_check, "_references", ran)
    monkeypatch.setattr(BACKENDS["onnxruntime"], "runner", ran)
    with pytest.raises(UserError, match="required backend onnxruntime-cuda cannot run: no such"):
        check(own_bundle, "onnxruntime", require=["onnxruntime-cuda"])


def test_each_photo_is_read_once(own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path, *arguments: Any) -> Photo:
        read.append(Path(path))
        return read_photo(path, *arguments)

    def again(*_: Any) -> None:
        raise AssertionError("a photo was read or preprocessed a second time")

    monkeypatch.setattr(parity_check, "read_photo", counting)
    monkeypatch.setattr(parity_check, "read_image", again)
    assert check(own_bundle, "onnxruntime", require=["onnxruntime"])
    assert read == [own_bundle.path / "reference" / "scene.png"]


def test_a_backend_that_breaks_fails_alone(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.runtimes import BACKENDS

    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr(BACKENDS["onnxruntime-cuda"], "why_unavailable", lambda: None)
    monkeypatch.setattr(BACKENDS["onnxruntime-cuda"], "runner", broken)
    report = check(own_bundle)
    status = {row.backend: row.status for row in report.rows}
    assert status["onnxruntime"] == "passed" and status["onnxruntime-cuda"] == "failed"
    assert not report and report.exit_code == 1
    assert "onnxruntime-cuda broke: RuntimeError: CUDA error 700" in report.verdict()
    assert "CUDA error 700" in (own_bundle.path / "parity.html").read_text()
    rows = json.loads((own_bundle.path / "parity.json").read_text())["rows"]
    traceback = {row["backend"]: row["traceback"] for row in rows}
    assert traceback["onnxruntime"] == "" and ", in broken\n" in traceback["onnxruntime-cuda"]


def test_the_torch_backend_agrees_too(own_bundle: Bundle, tiny_model: str) -> None:
    report = check(own_bundle, "onnxruntime", require=["torch"])
    assert [(r.backend, r.status) for r in report.rows] == [
        ("onnxruntime", "passed"),
        ("torch", "passed"),
    ]
    assert report.rows[1].same_slot == {0: 1.0, 1: 1.0, 2: 1.0}


def test_the_page_is_whole_in_itself(own_bundle: Bundle) -> None:
    check(own_bundle, "onnxruntime")
    page = (own_bundle.path / "parity.html").read_text(encoding="utf-8")
    sources = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert len(sources) >= 8
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert "masks carry no meaning" in page
    assert own_bundle.name in page and ".tmp-" not in page
    assert "100.000 %" in page and "scene.png" in page


def test_prompts_that_are_drawn_show_an_object(rng: np.random.Generator) -> None:
    """Not nothing, and not the whole photo; in the usual place where that shows one."""
    masks = np.zeros((25, 4, 8, 8), bool)
    masks[[5, 20], 0, :4] = True
    reference = replace(small_reference(rng), masks=masks)
    assert drawn_prompts(reference) == [5, 20]
    masks[5], masks[20] = False, True
    masks[9, 0, :2], masks[23, 0, :, 3:] = True, True
    assert drawn_prompts(reference) == [9, 23]
    masks[9] = False
    assert drawn_prompts(reference)[0] == 23  # no point shows anything: the box comes first
    wide = replace(reference.photo, geometry=ImageGeometry((4, 8), (4, 8), 8))
    masks[:, 0, 4:] = True  # below the photo, where the input is padding
    assert drawn_prompts(replace(reference, photo=wide))[0] == 23


def test_a_row_of_masks_stays_in_one_row(own_bundle: Bundle) -> None:
    """Both columns and pictures shrink with the window; nothing wraps."""
    check(own_bundle, "onnxruntime")
    page = (own_bundle.path / "parity.html").read_text(encoding="utf-8")
    assert "grid-template-columns: repeat(3, minmax(0, 1fr))" in page
    triplets = re.findall(r'<div class="triplet">(.*?)</div>', page, re.DOTALL)
    assert [text.count("<figure>") for text in triplets] == [3, 3]


def test_a_page_of_real_weights_has_no_warning(own_bundle: Bundle) -> None:
    own_bundle.manifest["model"]["weights"] = "checkpoint"
    check(own_bundle, "onnxruntime")
    assert "no meaning" not in (own_bundle.path / "parity.html").read_text(encoding="utf-8")


def test_the_stored_reference_reads_back(own_bundle: Bundle) -> None:
    file = own_bundle.path / "reference" / "scene.png"
    reference = load_reference(read_photo(file, own_bundle.preprocessing))
    assert reference.image == "scene.png" and reference.photo.rgb.shape == (96, 128, 3)
    assert reference.embedding.shape == (1, 256, 16, 16)
    assert reference.embedding.dtype == np.float32
    assert reference.scores.shape == (25, 4)
    assert reference.masks.shape == (25, 4, 64, 64) and reference.masks.dtype == bool
    for block in own_bundle.manifest["merging"]["blocks"]:
        slots, anchors = reference.plans[block["index"]]
        assert slots.shape[1] == block["tokens"] and anchors.shape[1] == block["slots"]
        assert slots.max() == block["slots"] - 1
    assert all(energy.shape == (16, 16) for energy in reference.energies.values())


def test_the_prompts_of_parity_stay_on_the_photo(own_bundle: Bundle) -> None:
    geometry = image_geometry(96, 128, own_bundle.preprocessing)
    coords, labels = prompt_grid(geometry)
    assert coords.shape == (25, 2, 2) and coords.dtype == labels.dtype == np.float32
    height, width = geometry.input_size
    assert (height, width) == (192, 256)
    assert (coords >= 0).all() and (coords <= [width, height]).all()
    assert labels[:16].tolist() == [[1, -1]] * 16 and labels[16:].tolist() == [[2, 3]] * 9
    assert (coords[16:, 1] > coords[16:, 0]).all()


@pytest.fixture
def other_photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(5).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "other.png")
    return tmp_path / "other.png"


def test_a_new_image_is_computed_with_torch(
    own_bundle: Bundle, tiny_model: str, other_photo: Path
) -> None:
    said: list[str] = []
    report = check(own_bundle, "onnxruntime", [other_photo], say=said.append)
    assert report and only_row(report).image == "other.png"
    assert report.page == own_bundle.path / "parity-photos.html" and report.page.is_file()
    written = json.loads((own_bundle.path / "parity-photos.json").read_text())
    assert [row["image"] for row in written["rows"]] == ["other.png"]
    assert "computing the PyTorch reference on other.png" in said


def test_a_known_image_needs_no_torch(
    own_bundle: Bundle, tiny_photo: Path, other_photo: Path, tmp_path: Path
) -> None:
    own_bundle.manifest["model"].update(weights="checkpoint", checkpoint={"file": "sam.pth"})
    own_bundle.save_manifest()
    assert check(own_bundle, "onnxruntime", [tiny_photo])
    same_name = tmp_path / "elsewhere" / tiny_photo.name
    same_name.parent.mkdir()
    shutil.copyfile(other_photo, same_name)
    with pytest.raises(UserError, match=r"holds no reference for scene\.png"):
        check(own_bundle, "onnxruntime", [same_name])


def test_a_bundle_without_its_references_runs_and_says_what_a_check_lacks(
    own_bundle: Bundle, tiny_photo: Path, tiny_model: str
) -> None:
    """A bundle on a robot may have dropped them."""
    shutil.rmtree(own_bundle.path / "reference")
    opened = open_bundle(own_bundle.path)
    with opened.predictor("onnxruntime") as predictor:
        predictor.set_image(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"reference/scene\.png is missing") as caught:
        check(opened, "onnxruntime")
    for way in ("from where the bundle was exported", "photos of your own", "export the bundle"):
        assert way in str(caught.value)
    assert check(opened, "onnxruntime", [tiny_photo])  # random weights: torch makes them anew


def test_an_altered_reference_is_noticed(own_bundle: Bundle) -> None:
    numbers = own_bundle.path / "reference" / "scene.png.npz"
    numbers.write_bytes(numbers.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"scene\.png\.npz was altered"):
        check(open_bundle(own_bundle.path), "onnxruntime")


def test_a_new_image_without_the_checkpoint(own_bundle: Bundle, other_photo: Path) -> None:
    own_bundle.manifest["model"].update(
        weights="checkpoint", checkpoint={"file": "sam_vit.pth", "sha256": "0" * 64}
    )
    before = sorted(own_bundle.path.rglob("*"))
    with pytest.raises(UserError, match=r"`checkpoint=sam_vit\.pth`") as caught:
        check(own_bundle, "onnxruntime", [other_photo])
    assert "no reference for other.png" in str(caught.value)
    assert "Leave `images=` out" in str(caught.value)
    assert sorted(own_bundle.path.rglob("*")) == before


def test_the_wrong_checkpoint(own_bundle: Bundle, other_photo: Path, tmp_path: Path) -> None:
    own_bundle.manifest["model"].update(
        weights="checkpoint", checkpoint={"file": "sam_vit.pth", "sha256": "0" * 64}
    )
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"PK\x03\x04 something else")
    options = RunOptions(checkpoint=wrong)
    with pytest.raises(UserError, match="is not the checkpoint of this bundle") as caught:
        check(own_bundle, "onnxruntime", [other_photo], options)
    assert "wrong.pth" in str(caught.value) and "sam_vit.pth" in str(caught.value)
    report = check(own_bundle, "torch", options=options)
    assert not report and "not the checkpoint" in only_row(report).reason


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_check_leaves_a_bundle_that_opens(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    from structsam_export.parity import page as parity_page

    def cut(*_: Any) -> str:
        raise stop

    part, edit, _ = FAULTS["decoder weight changed"]
    edit_onnx(own_bundle, part, edit)  # so that parity.json changes
    monkeypatch.setattr(parity_page, "render", cut)
    with pytest.raises(stop):
        check(own_bundle, "onnxruntime")
    open_bundle(own_bundle.path)
