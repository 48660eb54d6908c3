"""The bound of a device: the larger of compute and bytes, and launches on top."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam.flops import encoder_flops
from structsam.models import MODELS
from structsam.step_costs import encoder_costs
from structsam_export.bench import benchmark
from structsam_export.bench.report import BenchReport
from structsam_export.bench.roofline import (
    bound_notes,
    bound_of_bundle,
    encoder_bound,
    merging_of_bundle,
    step_times,
)
from structsam_export.bundle.folder import Bundle
from structsam_export.cli.main import run
from structsam_export.devices import DEVICES, Device

VIT_B = MODELS["vit_b"]
HALF = MergeConfig(rate=0.5)
PLAIN = Device("a device", 1e12, 2e12, 1e9, 1e-6, "https://example.org/sheet")


def test_compute_bytes_and_launches() -> None:
    found = encoder_bound(VIT_B, HALF, PLAIN)  # in the form that engines get
    costs = encoder_costs(VIT_B, replace(HALF, attention="folded_padded"))
    assert len(found.blocks) == VIT_B.depth + 2
    for block, cost in zip(found.blocks, costs, strict=True):
        assert block.compute_ms == pytest.approx(2 * cost.sum("macs") / 1e9)
        elements = sum(cost.sum(part) for part in ("weights", "activations", "mask"))
        assert block.bytes_ms == pytest.approx(2 * elements / 1e6)
        assert block.bound_ms == max(block.compute_ms, block.bytes_ms)
        assert block.all_ms == pytest.approx(block.bound_ms + cost.sum("kernels") / 1e3)
    assert found.total.bound_ms == pytest.approx(sum(block.bound_ms for block in found.blocks))


def test_the_larger_one_counts() -> None:
    slow_memory = encoder_bound(VIT_B, HALF, replace(PLAIN, bandwidth=1.0))
    slow_cores = encoder_bound(VIT_B, HALF, replace(PLAIN, fp16=1.0))
    assert {block.bound_by for block in slow_memory.blocks} == {"bytes"}
    assert {block.bound_by for block in slow_cores.blocks} == {"compute"}


def test_a_batch_reads_the_weights_once() -> None:
    one, eight = (encoder_bound(VIT_B, HALF, PLAIN, batch).total for batch in (1, 8))
    assert eight.weight_bytes == one.weight_bytes
    assert eight.activation_bytes == 8 * one.activation_bytes
    assert eight.compute_ms == pytest.approx(8 * one.compute_ms)
    assert eight.kernels == one.kernels


def test_steps_take_what_their_blocks_take() -> None:
    times = step_times(VIT_B, HALF, 1e12, 1e30, size=4, fused=True)
    macs = sum(cost.sum("macs") for cost in encoder_costs(VIT_B, HALF))
    assert sum(times.values()) == pytest.approx(2 * macs / 1e12)
    assert times["windows"] == 0 < times["merge"] < times["MLP"]


def test_a_bundle_is_counted_by_its_manifest(tiny_bundle: Bundle, tiny_model: str) -> None:
    spec, config = merging_of_bundle(tiny_bundle)
    assert encoder_flops(spec, config).to_dict()["total"] == tiny_bundle.manifest["flops"]["total"]
    assert bound_of_bundle(tiny_bundle, PLAIN) == encoder_bound(spec, config, PLAIN, 1)
    merging = {**tiny_bundle.manifest["merging"], "attention": "stock"}
    stock = Bundle(tiny_bundle.path, {**tiny_bundle.manifest, "merging": merging})
    assert merging_of_bundle(stock)[1] == MergeConfig(rate=0.0, attention="dense")


def test_notes_name_the_source_and_what_is_assumed() -> None:
    notes = "\n".join(bound_notes([encoder_bound(VIT_B, HALF, d) for d in DEVICES.values()]))
    assert all(device.source in notes for device in DEVICES.values())
    assert "both dense" in notes and "(assumed)" in notes and "Nothing here is measured" in notes


# The commands


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: str) -> Any:
        assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def test_flops_of_a_model(printed: Callable[..., Any]) -> None:
    found = printed("flops", "--rate", "0.7", "--placement", "stage", "--device", "thor")
    config = MergeConfig(rate=0.7, placement="stage")
    expected = encoder_bound(VIT_B, config, DEVICES["thor"])
    assert found["bounds"] == json.loads(json.dumps([expected.to_dict()]))
    assert "bounds" not in printed("flops", "--rate", "0.7")


def test_flops_of_a_bundle(
    printed: Callable[..., Any], tiny_bundle: Bundle, tiny_model: str
) -> None:
    path = str(tiny_bundle.path)
    found = printed("flops", path, "--device", "h100", "--device", "orin-nx")
    assert found["total"] == tiny_bundle.manifest["flops"]["total"]
    assert [bound["device"]["title"] for bound in found["bounds"]] == [
        DEVICES[name].title for name in ("h100", "orin-nx")
    ]
    assert "bounds" not in printed("flops", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h1000"], "unknown device 'h1000'"),
        (["--device", "h100", "--method", "all"], "no --method all"),
        (["--device", "h100", "--placement", "thesis"], "no thesis"),
        (["nowhere"], "no bundle at nowhere"),
        (["nowhere", "--rate", "0.5"], "a bundle says what --rate would"),
    ],
)
def test_what_flops_refuses(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["flops", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_table_keeps_to_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["flops", "--model", "vit_l", "--attention", "dense", "--device", "rtx4090"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(table) == MODELS["vit_l"].depth + 3 and max(map(len, table)) <= 100


def test_bench_tells_the_bounds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Bundle,
    tiny_model: str,
) -> None:
    report = BenchReport([], [], {"runs": 1, "warmup": 0, "timed": ""}, {}, {}, "", "")
    monkeypatch.setattr(benchmark, "bench", lambda *arguments: report)
    monkeypatch.setattr(BenchReport, "__bool__", lambda self: True)
    assert run(["bench", str(tiny_bundle.path), "--device", "orin-nano", "--json"]) == 0
    (bound,) = json.loads(capsys.readouterr().out)["bounds"]
    assert bound["bundle"] == tiny_bundle.name
    assert bound["device"]["title"] == DEVICES["orin-nano"].title and bound["total"]["all_ms"] > 0
