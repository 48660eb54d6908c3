"""Structure of a benchmark's report, rows that cannot run, dying processes, and the baselines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.evaluation.read_results import FORMAT
from structsam.evaluation.results import RLE_COLUMNS, ROW_COLUMNS
from structsam.flops import encoder_flops
from structsam.models import MODELS, ModelSpec
from structsam_export.bench import benchmark
from structsam_export.bench import process as benchmark_process
from structsam_export.bench.benchmark import Procedure, _compare
from structsam_export.bench.cost_card import cost_card
from structsam_export.bench.encoders import UNMERGED, batch_of, make_merged, make_stock
from structsam_export.bench.fidelity import add_fidelity, draw_benchmark, read_fidelity
from structsam_export.bench.report import BenchReport, BenchRow, markdown, render_table
from structsam_export.bench.row import feeds_of, peak_memory_mib
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.cli.main import main
from structsam_export.runtimes import BACKENDS, RunOptions
from tests.structsam_export.conftest import take_graphs
from tests.structsam_export.small_bundle import make_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def no_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose matrix products reach 10^11 FLOP/s, known without measuring."""
    monkeypatch.setattr(benchmark, "gemm_rate", lambda threads: 1e11)


def small(folder: Path) -> Bundle:
    """A bundle of two tiny graphs with the cost of vit_t in its manifest."""
    bundle = make_bundle(folder)
    bundle.manifest["name"] = folder.name
    bundle.manifest["model"] = {
        "name": "vit_t", "weights": "random", "seed": 0, "checkpoint": None,
    }  # fmt: skip
    bundle.manifest["flops"] = encoder_flops(MODELS["vit_t"], MergeConfig()).to_dict()
    bundle.manifest["parity"] = {"passed": True, "verdict": "parity passed (fp16)"}
    bundle.save_manifest()
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small(tmp_path / "small")


def bench(
    bundles: Any, backends: Any = ("auto",), baselines: bool = False, **more: Any
) -> BenchReport:
    """`benchmark.bench` with the fields of its procedure as arguments."""
    rest = {name: more.pop(name) for name in ("keep", "say") if name in more}
    procedure = Procedure(options=RunOptions(more.pop("threads", None)), **more)
    return benchmark.bench(bundles, backends, baselines, procedure, **rest)


def text_of(report: BenchReport) -> str:
    console = Console(width=300, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render_table(report))
    return console.export_text()


def test_report_has_every_bundle_backend_and_network(bundle: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    other = small(tmp_path / "other")
    report = bench(
        [bundle, str(other.path)],
        backends=("onnxruntime",),
        threads=1,
        runs=3,
        say=said.append,
    )
    assert report
    assert [(r.bundle, r.backend, r.part) for r in report.rows] == [
        ("small", "onnxruntime", "encoder"),
        ("other", "onnxruntime", "encoder"),
        ("small", "onnxruntime", "decoder"),  # the same file as the other's
    ]
    for row in report.rows:
        assert row.status == "measured"
        assert len(row.samples_ms) == 3
        assert row.median_ms is not None and row.p10_ms is not None and row.p90_ms is not None
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.runtime == {"providers": ["CPUExecutionProvider"], "threads": 1}
        assert (row.parity, row.fidelity) == ("parity passed (fp16)", "not evaluated")
        assert row.speedup == {}
        if sys.platform != "win32":
            assert row.peak_memory_mib is not None and row.peak_memory_mib > 10
    encoder, other_encoder, decoder = report.rows
    for row in (encoder, other_encoder):
        assert row.with_decoder_ms == pytest.approx(row.median_ms + decoder.median_ms)
    assert encoder.gmac == pytest.approx(bundle.manifest["flops"]["total"] / 1e9)
    assert encoder.of_gemm_rate is not None
    assert decoder.gmac is None and decoder.of_gemm_rate is None
    first_measured = next(i for i, line in enumerate(said) if line.endswith(" ms"))
    assert any("GMAC" in line for line in said[:first_measured])


def test_report_survives_json_and_says_how_it_was_measured(bundle: Bundle) -> None:
    report = bench([bundle], threads=1, runs=2, warmup=0, interleave=False)
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    facts = {"rows", "cards", "settings", "hardware", "versions", "date", "command", "bounds"}
    assert facts == set(data)
    settings = {k: data["settings"][k] for k in ("runs", "warmup", "threads")}
    assert settings == {"runs": 2, "warmup": 0, "threads": 1}
    assert [row["batch"] for row in data["rows"]] == [1, 1]
    assert data["hardware"]["cpu"] and data["versions"]["onnxruntime"] and data["command"]
    assert data["cards"][0]["intensity"] > 0


def test_table_marks_random_weights_and_shows_accuracy(bundle: Bundle) -> None:
    text = text_of(bench([bundle], backends=("onnxruntime",), runs=1, warmup=0))
    assert "small*" in text and "random weights, latency only" in text
    assert "parity passed (fp16)" in text and "not evaluated" in text


def test_a_backend_that_cannot_run_is_a_row_with_its_reason(bundle: Bundle) -> None:
    report = bench([bundle], backends=("onnxruntime", "tensorrt"), runs=1)
    missing = [row for row in report.rows if row.backend == "tensorrt"]
    assert [row.status for row in missing] == ["not run", "not run"]
    assert all("tensorrt" in row.reason.lower() or "GPU" in row.reason for row in missing)
    assert report, "rows that were not run are no failure"
    assert f"not run: {missing[0].reason}"[:40] in text_of(report)


def test_a_required_backend_must_run(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="required backend tensorrt cannot run"):
        bench([bundle], backends=("onnxruntime",), require=("tensorrt",), runs=1)


def test_nothing_measured_is_false(bundle: Bundle) -> None:
    report = bench([bundle], backends=("tensorrt",), runs=1)
    assert not report
    json.dumps(report.to_dict())


def test_a_network_that_cannot_be_opened_fails_its_row_only(bundle: Bundle) -> None:
    (bundle.path / "encoder.onnx").write_bytes(b"no graph")
    said: list[str] = []
    report = bench([bundle], backends=("onnxruntime",), runs=1, say=said.append)
    encoder, decoder = report.rows
    assert (encoder.status, decoder.status) == ("failed", "measured")
    assert "INVALID_PROTOBUF" in encoder.reason or "protobuf" in encoder.reason.lower()
    assert "\n" not in encoder.reason
    assert not report
    assert any("failed" in line for line in said)


def test_a_process_that_dies_is_reported_with_its_last_words(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys, os; print('out of beans', file=sys.stderr, flush=True); os._exit(7)"
    start = subprocess.Popen

    def dying(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", script], **options)

    monkeypatch.setattr(benchmark_process.subprocess, "Popen", dying)
    report = bench([bundle], backends=("onnxruntime",), runs=1)
    assert {row.status for row in report.rows} == {"failed"}
    assert report.rows[0].reason == "the row's process ended with code 7: out of beans"


def test_an_interruption_ends_the_processes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        started.append(start(*args, **options))
        return started[-1]

    def interrupted(self: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_process.subprocess, "Popen", watched)
    monkeypatch.setattr(benchmark_process.RowProcess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench([bundle], backends=("onnxruntime",), runs=1)
    assert started and all(process.poll() is not None for process in started)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundles": []}, "nothing to measure"),
        ({"runs": 0}, "at least 1"),
        ({"warmup": -1}, "at least 1"),
        ({"threads": 0}, "threads is 0"),
        ({"backends": ("abacus",)}, "unknown backend 'abacus'"),
        ({"bundles": ["nowhere"]}, "no bundle at nowhere"),
    ],
)
def test_mistakes_are_refused(bundle: Bundle, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(**{"bundles": [bundle], **arguments})


def test_a_row_does_not_report_the_memory_of_its_parent() -> None:
    ballast = np.ones(80_000_000, np.float32)  # 305 MiB
    command = [
        sys.executable,
        "-c",
        "from structsam_export.bench.row import peak_memory_mib; print(peak_memory_mib())",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    own = peak_memory_mib()
    if own is None:
        assert told == "None"
    else:
        assert float(told) < 200 < own
    assert ballast[0] == 1


def test_prompt_inputs_are_one_box() -> None:
    part = Part(
        "decoder.onnx",
        (
            TensorSpec("image_embeddings", (1, 256, 4, 4), "float32"),
            TensorSpec("point_coords", ("P", "K", 2), "float32"),
            TensorSpec("point_labels", ("P", "K"), "float32"),
            TensorSpec("mask_input", ("P", 1, 16, 16), "float32"),
            TensorSpec("has_mask_input", ("P",), "float32"),
        ),
        (),
        {"P": (1, 1, 64), "K": (1, 2, 16)},
    )
    feeds = feeds_of(part)
    assert feeds["point_labels"].tolist() == [[2.0, 3.0]]
    (x0, y0), (x1, y1) = feeds["point_coords"][0]
    assert x0 < x1 and y0 < y1
    assert not feeds["has_mask_input"].any() and not feeds["mask_input"].any()
    assert all(array.dtype == np.float32 for array in feeds.values())


def test_cost_card_follows_from_the_manifest(bundle: Bundle) -> None:
    card = cost_card(bundle, flop_rate=1e11)
    assert card is not None and card.ideal_ms is not None
    assert card.gmac < card.executed_gmac
    assert card.ideal_ms == pytest.approx(2 * card.executed_gmac * 1e9 / 1e11 * 1e3)
    assert card.kept == ("window 97/196", "global 2047/4096")
    assert card.logits_bytes == 3 * 2047**2 * 2
    config = MergeConfig(prompt_aware="windows")
    bundle.manifest["flops"] = encoder_flops(MODELS["vit_t"], config).to_dict()
    tiers = cost_card(bundle)
    assert tiers is not None and tiers.kept == ("window 145+73/196", "global 2047/4096")
    del bundle.manifest["flops"]
    assert cost_card(bundle) is None


def test_a_row_process_imports_no_torch() -> None:
    code = (
        "import sys, structsam_export.bench.row, structsam_export.bench.benchmark; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_baselines_stand_beside_a_real_bundle(tiny_bundle: Bundle, tiny_model: str) -> None:
    report = bench([tiny_bundle], backends=("onnxruntime",), baselines=True, runs=3)
    assert [(row.role, row.part, row.status) for row in report.rows] == [
        ("stock", "encoder", "measured"),
        ("unmerged", "encoder", "measured"),
        ("bundle", "encoder", "measured"),
        ("bundle", "decoder", "measured"),
    ]
    stock, unmerged, merged, decoder = report.rows
    assert stock.speedup["stock"] == 1 == unmerged.speedup["unmerged"]
    assert merged.median_ms is not None and stock.median_ms is not None
    assert merged.speedup["stock"] == pytest.approx(stock.median_ms / merged.median_ms)
    assert set(merged.speedup) == {"stock", "unmerged"} and not decoder.speedup
    assert stock.gmac == pytest.approx(unmerged.gmac)
    assert merged.gmac is not None and stock.gmac is not None and merged.gmac < stock.gmac
    assert "x unmerged" in text_of(report)


@pytest.fixture
def two_blocks(
    tiny_spec: ModelSpec,
    tiny_bundle_factory: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> ModelSpec:
    """A model of two tiny blocks that has a name. Its decoder was traced for the shared bundle."""
    take_graphs(monkeypatch, tiny_bundle_factory, "DecoderModule")
    spec = replace(tiny_spec, depth=2)
    monkeypatch.setitem(MODELS, spec.name, spec)
    return spec


@pytest.mark.slow
def test_encoders_of_a_model_are_made_kept_and_measured_in_batches(
    tmp_path: Path, two_blocks: ModelSpec
) -> None:
    configs = [MergeConfig(rate=0.5), MergeConfig(rate=0.5, placement="block")]
    said: list[str] = []

    def make() -> list[Bundle]:
        said.clear()
        return list(make_merged(two_blocks, configs, "fp32", 2, tmp_path, said.append))

    first, second = make()
    assert len(said) == 2 and all("random weights" in line for line in said)
    assert (batch_of(first), first.part("encoder").outputs[0].shape[0]) == (2, 2)
    assert (first.path / "decoder.onnx").read_bytes() == (second.path / "decoder.onnx").read_bytes()
    make()
    assert said == []
    (first.path / "encoder.onnx").write_bytes(b"cut off")
    make()
    assert said == [f"exporting {first.name} (random weights, for latency only)"]

    report = bench([first, second], ("onnxruntime",), baselines=True, runs=1, keep=tmp_path)
    encoders = [row for row in report.rows if row.part == "encoder"]
    assert [row.role for row in encoders] == ["stock", "unmerged", "bundle", "bundle"]
    assert {(row.status, row.batch) for row in encoders} == {("measured", 2)}
    assert all(row.with_decoder_ms is None for row in encoders), "a decoder takes one image"
    assert all(set(row.speedup) == {"stock", "unmerged"} for row in encoders)
    assert "batch" in text_of(report)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [first.name, second.name, f"stock-{two_blocks.name}-batch2",
         f"unmerged-{two_blocks.name}-fp32-batch2"]
    )  # fmt: skip


@pytest.fixture(scope="module")
def stock_and_merged(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_spec: ModelSpec,
    tiny_bundle_factory: Callable[..., Bundle],
) -> tuple[Bundle, Bundle]:
    """Bundles of the two blocks, for both backends of torch."""
    spec = replace(tiny_spec, depth=2)
    folder, configs = tmp_path_factory.mktemp("stock"), [MergeConfig(rate=0.5)]
    with pytest.MonkeyPatch.context() as patch:
        take_graphs(patch, tiny_bundle_factory, "DecoderModule")
        patch.setitem(MODELS, spec.name, spec)
        (merged,) = make_merged(spec, configs, "fp32", 1, folder / "m", lambda text: None)
        return make_stock(merged, folder / "stock", lambda text: None), merged


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "torch-compile"])
def test_stock_and_merged_run_in_torch_as_in_onnx(
    stock_and_merged: tuple[Bundle, Bundle], two_blocks: ModelSpec, backend: str
) -> None:
    if reason := BACKENDS[backend].why_unavailable():
        pytest.skip(reason)
    stock, merged = stock_and_merged
    embeddings = {stock.name: outputs_of(stock, "torch")["image_embeddings"]}
    # compiling is the same for both: the merged one is the harder one
    for bundle in (merged,) if backend == "torch-compile" else (stock, merged):
        found, expected = outputs_of(bundle, backend), outputs_of(bundle, "onnxruntime")
        assert len(found) == (1 if bundle is stock else 1 + 2 * 2)  # with the plans of two blocks
        embeddings[bundle.name] = found.pop("image_embeddings")
        np.testing.assert_allclose(
            embeddings[bundle.name], expected.pop("image_embeddings"), rtol=1e-3, atol=1e-4
        )
        for name, slots in found.items():  # of noise: a tie may be ranked otherwise
            assert (slots == expected[name]).mean() > 0.99
    difference = embeddings[stock.name] - embeddings[merged.name]
    assert np.abs(difference).max() > 1e-3, "merging changes the embedding"


def outputs_of(bundle: Bundle, backend: str) -> dict[str, np.ndarray]:
    part = bundle.part("encoder")
    with BACKENDS[backend].runner(bundle, "encoder", RunOptions()) as runner:
        return runner.run(feeds_of(part), [spec.name for spec in part.all_outputs])


def evaluated(folder: Path, model: str) -> Path:
    """Results of an unmerged run and of one merged as `small`'s, ten points worse."""
    runs = []
    for name, merging, values in (
        ("unmerged", None, (0.8, 0.6)), ("merged", MergeConfig(), (0.7, 0.5)),
    ):  # fmt: skip
        runs.append({
            "name": name, "label": name, "complete": True, "backend": "torch",
            "merging": None if merging is None else json.loads(json.dumps(merging.to_dict())),
        })  # fmt: skip
        rows = [",".join((*ROW_COLUMNS, "iou", *RLE_COLUMNS))]
        for image in range(8):
            cells = {
                "image_id": str(image), "object_id": "1", "objects": "1", "category": "",
                "height": "10", "width": "10", "area": "4", "crowd": "0", "box": "0 0 2 2",
                "score": "0.9", "truth_rle": "x", "rle": "x", "iou": str(values[image % 2]),
            }  # fmt: skip
            rows.append(",".join(cells.get(name, "") for name in rows[0].split(",")))
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        (folder / "rows" / f"{name}.csv").write_text("\n".join(rows) + "\n")
    facts = {
        "format": FORMAT, "model": {"name": model, "weights": "embedded"}, "dataset": {},
        "protocol": {}, "runs": runs,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(facts))
    return folder


def test_an_evaluation_of_the_same_merging_stands_beside_the_latency(
    bundle: Bundle, tmp_path: Path
) -> None:
    bundle.manifest["merging"] = json.loads(json.dumps(MergeConfig().to_dict()))
    other = small(tmp_path / "other")
    other.manifest["merging"] = bundle.manifest["merging"] | {"rate": 0.25}
    report = bench([bundle, other], ("onnxruntime",), runs=1)
    assert draw_benchmark(report), "latency alone"
    add_fidelity(report, [bundle, other], read_fidelity([evaluated(tmp_path / "b", "vit_b")]))
    assert {row.fidelity for row in report.rows} == {"not evaluated"}
    add_fidelity(report, [bundle, other], read_fidelity([evaluated(tmp_path / "t", "vit_t")]))
    first, second, decoder = report.rows
    assert first.fidelity == "mIoU 60.0, -10.0 [-10.0, -10.0]"
    assert first.quality["value"] == pytest.approx(0.6) and first.quality["masks"] == 8
    assert (second.fidelity, decoder.fidelity) == ("not evaluated", "not evaluated")
    assert "-10.0 [-10.0, -10.0]" in text_of(report)
    told = markdown(report)
    table = [line for line in told.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 and len({line.count("|") for line in table}) == 1
    assert "mIoU 60.0" in table[2] and set(table[1]) <= set("|-:")
    assert report.command in told and "random weights" in told
    picture = draw_benchmark(report)
    assert picture and picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "merging"),
    [
        ({"complete": False}, {}),
        ({}, {"align": 64}),
        ({}, {"reuse": 2}),
        ({}, {"layers": "global"}),
        ({}, {"options": {"operator": "central"}}),
    ],
)
def test_another_or_an_unfinished_evaluation_says_nothing(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], merging: dict[str, Any]
) -> None:
    bundle.manifest["merging"] = json.loads(json.dumps(MergeConfig().to_dict()))
    report = bench([bundle], ("onnxruntime",), runs=1)
    folder = evaluated(tmp_path / "results", "vit_t")
    facts = json.loads((folder / "evaluation.json").read_text())
    facts["runs"][1] |= change
    facts["runs"][1]["merging"] |= merging
    (folder / "evaluation.json").write_text(json.dumps(facts))
    add_fidelity(report, [bundle], read_fidelity([folder]))
    assert report.rows[0].fidelity == "not evaluated"


def test_real_weights_need_an_evaluation_of_the_same(bundle: Bundle, tmp_path: Path) -> None:
    bundle.manifest["merging"] = json.loads(json.dumps(MergeConfig().to_dict()))
    report = bench([bundle], ("onnxruntime",), runs=1)
    folder = evaluated(tmp_path / "results", "vit_t")
    bundle.manifest["model"] |= {"weights": "checkpoint", "checkpoint": {"sha256": "abc"}}
    add_fidelity(report, [bundle], read_fidelity([folder]))
    assert report.rows[0].fidelity == "not evaluated"
    facts = json.loads((folder / "evaluation.json").read_text())
    facts["model"]["sha256"] = "abc"
    (folder / "evaluation.json").write_text(json.dumps(facts))
    add_fidelity(report, [bundle], read_fidelity([folder]))
    assert report.rows[0].fidelity.startswith("mIoU 60.0")
    facts["model"]["weights"] = "random"
    (folder / "evaluation.json").write_text(json.dumps(facts))
    assert read_fidelity([folder]) == []


def test_a_folder_that_bench_did_not_make_is_never_replaced(
    bundle: Bundle, tmp_path: Path, tiny_model: str
) -> None:
    name = f"{tiny_model}-structsam-r0.50-fp32"
    bundle.path.rename(tmp_path / name)
    before = (tmp_path / name / "manifest.json").read_bytes()
    made = make_merged(MODELS[tiny_model], [MergeConfig()], "fp32", 1, tmp_path, lambda text: None)
    with pytest.raises(UserError, match="was not made by `bench`"):
        list(made)
    assert (tmp_path / name / "manifest.json").read_bytes() == before


def run_cli(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_one_command_from_a_model_to_a_table_and_a_picture(
    two_blocks: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = (
        "bench", "--model", two_blocks.name, "--rates", "0.25,0.5", "--placement", "block",
        "--precision", "fp32", "--backend", "onnxruntime", "--runs", 1, "--warmup", 0,
        "--out", out,
    )  # fmt: skip
    assert run_cli(*asked) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    name = two_blocks.name
    assert [(row["bundle"], row["part"]) for row in report["rows"]] == [
        (f"{name}-structsam-r0.25-block-fp32", "encoder"),
        (f"{name}-structsam-r0.50-block-fp32", "encoder"),
        (f"{name}-structsam-r0.25-block-fp32", "decoder"),
    ]
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert json.loads((out / "bench.json").read_text()) == report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give bundles to measure, or --model"),
        (("{bundle}", "--model", "vit_t"), "give bundles to measure, or --model"),
        (("{bundle}", "--rates", "0.7"), "a bundle says what --rates would"),
        (("{bundle}", "--batch", "4"), "a bundle says what --batch would"),
        (("--model", "vit_t", "--checkpoint", "x.pth"), "--model measures random weights"),
        (("--model", "vit_t", "--precision", "int4"), "unknown precision 'int4'"),
        (("--model", "vit_t", "--precision", "int8"), "Add --calibrate with a folder of 16"),
        (("--model", "vit_t", "--rates", "0"), "nothing merges at rate 0"),
        (("--model", "vit_q"), "Unknown model 'vit_q'"),
        (("--model", "vit_t", "--backend", "nope"), "unknown backend 'nope'"),
        (("--model", "vit_t", "--require", "nope"), "unknown backend 'nope'"),
        (("{bundle}", "--fidelity", "{bundle}"), "is no results folder"),
        (("{bundle}", "--out", "{bundle}/manifest.json"), "cannot write"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run_cli("bench", *(a.format(bundle=bundle.path) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split()) and captured.out == ""
    assert captured.err.count("error:") == 1 and "opening" not in captured.err


def test_rows_are_compared_with_the_fastest_unmerged_encoder(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")

    def row(name: str, role: str, ms: float) -> BenchRow:
        found = BenchRow(name, role, "tiny", "fp16", "onnxruntime", "encoder", 1, True, "passed")
        found.set_samples([(ms, None), (ms, None)], warmup=0)
        return found

    merged = row("merged", "bundle", 10.0)
    for order in ((40.0, 20.0, 30.0), (20.0, 30.0, 40.0)):
        unmerged = [row(f"unmerged-{ms}", UNMERGED, ms) for ms in order]
        jobs = [(each, bundle) for each in (*unmerged, merged)]
        _compare(jobs, {id(bundle): None}, {})
        assert merged.speedup == merged.first_speedup == {UNMERGED: 2.0}
