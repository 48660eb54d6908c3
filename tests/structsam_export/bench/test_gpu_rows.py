"""What a report says of rows on a GPU, told by pretended rows and a pretended nvidia-smi."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from structsam_export.bench import benchmark, gpu_state, turns
from structsam_export.bench.benchmark import Procedure
from structsam_export.bench.gpu_state import state_lines
from structsam_export.bench.report import BenchReport, caption, render_table
from structsam_export.bench.steady import MOST_WINDOWS, WINDOW, warm_up
from structsam_export.bundle.folder import Bundle
from tests.structsam_export.small_bundle import make_bundle

pytest.importorskip("onnxruntime")


def times(*windows: float) -> Any:
    """A clock whose windows have these medians, then the last one for ever."""
    answers = iter([ms for window in windows for ms in [window * 9, *[window] * (WINDOW - 1)]])
    return lambda: next(answers, windows[-1])


@pytest.mark.parametrize(
    ("windows", "runs", "steady"),
    [
        ((5.0, 5.05), 2, True),
        ((5.0, 4.0, 4.0), 3, True),
        ((9.0, 5.0, 4.0, 3.98), 4, True),
        (tuple(2.0**n for n in range(MOST_WINDOWS)), MOST_WINDOWS, False),
    ],
)
def test_warming_up_ends_when_two_windows_agree(
    windows: tuple[float, ...], runs: int, steady: bool
) -> None:
    found = warm_up(times(*windows))
    assert found is not None
    assert (found["runs"], found["steady"]) == (runs * WINDOW, steady)
    assert (found["difference"] <= 0.02) == steady


def test_without_device_time_one_run_is_enough_to_know() -> None:
    calls: list[None] = []
    assert warm_up(lambda: calls.append(None)) is None and len(calls) == 1


SMI = {
    "index": "0", "uuid": "GPU-a", "clocks.sm": "1980 MHz", "clocks.mem": "2619 MHz",
    "power.limit": "700.00 W", "temperature.gpu": "41",
}  # fmt: skip
JETSON = SMI | dict.fromkeys(("clocks.sm", "clocks.mem", "power.limit"), "[N/A]")


def test_the_state_is_that_of_the_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SMI | {"index": "1", "uuid": "GPU-b", "temperature.gpu": "77"}
    monkeypatch.setattr(gpu_state, "query_gpus", lambda *names: [SMI, other])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_state.gpu_state() == {
        "clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.limit": 700.0, "temperature.gpu": 41.0,
    }  # fmt: skip
    for visible in ("1", "GPU-b", "1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu_state.gpu_state()["temperature.gpu"] == 77.0


def test_what_nvidia_smi_does_not_tell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*names: str) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu_state, "query_gpus", lambda *names: [JETSON])
    before = gpu_state.gpu_state()
    (line,) = state_lines([{"rows": "tensorrt, encoder", "before": before, "after": before}])
    assert line.startswith("GPU before -> after tensorrt, encoder: temperature 41 °C; nvidia-smi")
    assert "does not tell SM clock, memory clock, power limit; on a Jetson fix clocks" in line
    monkeypatch.setattr(gpu_state, "query_gpus", absent)
    assert set(gpu_state.gpu_state().values()) == {None}


def test_what_moved_is_said() -> None:
    before = {
        "clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.limit": 700.0, "temperature.gpu": 41.0,
    }  # fmt: skip
    after = before | {"clocks.sm": 1755.0, "temperature.gpu": 45.0}
    assert state_lines([{"rows": "r", "before": before, "after": after}]) == [
        "GPU before -> after r: SM clock 1980 -> 1755 MHz (moved), memory clock 2619 MHz, "
        "power limit 700 W, temperature 41 -> 45 °C"
    ]
    after = before | {"clocks.sm": 1965.0, "power.limit": 600.0, "temperature.gpu": 58.0}
    (line,) = state_lines([{"rows": "r", "before": before, "after": after}])
    assert "1980 -> 1965 MHz, " in line
    assert "700 -> 600 W (moved), temperature 41 -> 58 °C (moved)" in line


class PretendedProcess:
    """A row: on `onnxruntime` the CPU computes, `tensorrt-rtx` alone tells device time."""

    def __init__(self, bundle: Bundle, backend: str, part: str, options: Any) -> None:
        self.on_gpu = backend == "tensorrt-rtx"
        self.facts = {
            "tensorrt-rtx": {"specialisation": "eager"},
            "onnxruntime": {},
            "onnxruntime-cuda": {"no_device_time": "the driver is too old"},
        }[backend]
        self.turns = count()

    def __enter__(self) -> PretendedProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def wait_until_ready(self) -> None:
        pass

    def run(self) -> tuple[float, float | None]:
        turn = next(self.turns)
        return 20.0 + turn, 2.0 + turn if self.on_gpu else None

    def warm_up(self) -> dict[str, Any] | None:
        return {"runs": 15, "difference": 0.3, "steady": False} if self.on_gpu else None

    def finish(self) -> tuple[dict[str, Any], float | None]:
        return self.facts, 100.0


Measure = Callable[..., BenchReport]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.setattr(turns, "RowProcess", PretendedProcess)
    monkeypatch.setattr(gpu_state, "query_gpus", lambda *names: [SMI])
    monkeypatch.setattr(benchmark, "gemm_rate", lambda threads: 1e11)
    bundle = make_bundle(tmp_path / "bundle")
    bundle.manifest["model"] = {"name": "vit_t", "weights": "random", "checkpoint": None}

    def run(warmup: int, *backends: str) -> BenchReport:
        return benchmark.bench([bundle], backends, procedure=Procedure(runs=3, warmup=warmup))

    return run


def test_without_warm_up_the_state_is_told_too(measure: Measure) -> None:
    report = measure(0, "tensorrt-rtx")
    assert report.rows[0].device_ms == 3.0 and report.rows[0].warm_up is None
    assert "GPU before -> after tensorrt-rtx, encoder: SM clock 1980 MHz" in caption(report)
    assert measure(0, "onnxruntime").settings["gpu_states"] == []


def test_a_gpu_without_device_time_is_not_taken_for_a_cpu(measure: Measure) -> None:
    report = measure(2, "onnxruntime-cuda")
    assert report.rows[0].device_ms is None
    assert "no device time: small, encoder on onnxruntime-cuda: the driver is too old" in caption(
        report
    )


def test_device_time_stands_beside_wall_time(measure: Measure) -> None:
    report = measure(2, "tensorrt-rtx", "onnxruntime")
    gpu, _, cpu, _ = report.rows
    assert (gpu.median_ms, gpu.device_ms, gpu.device_samples_ms) == (23.0, 5.0, [4.0, 5.0, 6.0])
    assert (cpu.median_ms, cpu.device_ms, cpu.device_samples_ms) == (23.0, None, [])
    assert [state["rows"] for state in report.settings["gpu_states"]] == [
        "tensorrt-rtx, encoder", "tensorrt-rtx, decoder",
    ]  # fmt: skip
    console = Console(width=200, record=True)
    console.print(render_table(report))
    lines = console.export_text().splitlines()
    titles = next(line for line in lines if "device ms" in line).split("┃")
    place = [title.strip() for title in titles].index("device ms")
    cells = [line.split("│")[place].strip() for line in lines if "encoder │" in line]
    assert cells == ["5", "-"]
    text = caption(report)
    assert "device ms: median between CUDA events" in text and "-: the CPU computes" in text
    assert "until two windows of 5 agreed within 2%" in text
    assert (
        "not steady: small, encoder on tensorrt-rtx, whose last two windows differ by 30%" in text
    )
    assert "TensorRT-RTX compiled its kernels for these shapes eagerly" in text
    assert "GPU before -> after tensorrt-rtx, decoder: SM clock 1980 MHz" in text
