"""scripts/bench_gpu.py, with the CPU in the GPU's place: groups, parity, time, what it leaves."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from structsam.config import MergeConfig
from structsam_export.bundle.folder import Bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tiny_model: str, tiny_bundle: Bundle) -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)
    spec.loader.exec_module(module)
    small = module.Group(
        "first", tiny_model, (MergeConfig(rate=0.5, placement="block"),), ("onnxruntime",)
    )
    groups = (replace(small, seconds=0.0), replace(small, title="second", seconds=1e6))
    monkeypatch.setattr(module, "GROUPS", groups)
    monkeypatch.setattr(module, "_GPU_BACKENDS", ("onnxruntime",))
    monkeypatch.setattr(module, "_PARITY_BUNDLE", tiny_bundle.path.name)
    return module


@pytest.mark.slow
def test_it_prepares_measures_and_names_what_was_left_out(
    script: Any, tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / tiny_bundle.path.name)
    assert script.main(["prepare", str(tmp_path), "--target", "sm89"]) == 0
    capsys.readouterr()
    assert script.main(["run", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "exporting" not in captured.err, "everything was prepared"
    told = (tmp_path / "bench_gpu.md").read_text(encoding="utf-8")
    assert told.strip() in captured.out
    assert "| onnxruntime | passed |" in told
    assert "## second\n\nNot run: " in told
    report = json.loads((tmp_path / "bench_gpu.json").read_text(encoding="utf-8"))
    assert list(report) == ["first"]
    rows = [(row["role"], row["part"], row["status"]) for row in report["first"]["rows"]]
    assert rows == [
        ("stock", "encoder", "measured"), ("unmerged", "encoder", "measured"),
        ("bundle", "encoder", "measured"), ("bundle", "decoder", "measured"),
    ]  # fmt: skip


def test_mistakes_end_with_one_line(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["run", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: no bundle at")
    assert script.main(["run", str(tmp_path), "--group", "9"]) == 2
    assert "no group 9" in capsys.readouterr().err


def test_the_real_groups_are_within_the_methods_limits() -> None:
    spec = importlib.util.spec_from_file_location("bench_gpu_groups", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    from structsam.flops import encoder_flops
    from structsam.models import model_spec

    assert sum(group.seconds for group in module.GROUPS) <= 7.5 * 60
    for group in module.GROUPS:
        for config in group.configs:
            assert encoder_flops(model_spec(group.model), config).total > 0
