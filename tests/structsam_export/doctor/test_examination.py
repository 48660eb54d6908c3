"""The page and its JSON: complete, whatever breaks; and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from structsam_export.cli import main as cli
from structsam_export.cli.errors import EXTRA_OF
from structsam_export.doctor import examination, process
from structsam_export.doctor.examination import examine
from structsam_export.doctor.page import page_lines
from structsam_export.runtimes import BACKENDS
from tests.structsam_export.doctor.test_jetson import board, program  # noqa: F401

WORKS = {"works": True, "reason": None, "self_test": "passed", "run_ms": 0.5, "seconds": 1.0}
LACKS = {"works": False, "reason": "it is not installed", "self_test": "not run"}


def answers(subject: str) -> dict[str, Any]:
    if subject == process.CUDA:
        return {"gpu": "Pretended GPU", "target": "sm89", "driver_supports": "12.6", "free_mib": 5}
    return dict(WORKS if subject == "onnxruntime" else LACKS)


def test_the_page_names_everything(board: Path) -> None:  # noqa: F811
    row = "Pretended GPU, 550.54, 8.9, 5 MiB, 9 MiB, 72.00 W"
    program(board / "bin", "nvidia-smi", f"echo '{row}'")
    said: list[str] = []
    found = examine(answers, said.append, board)
    json.dumps(found)
    assert found["works"] == ["onnxruntime"] and list(found["runtimes"]) == list(BACKENDS)
    assert said == [f"trying {name}" for name in BACKENDS]
    page = "\n".join(page_lines(found))
    for text in (
        f"python: {sys.version.split()[0]}",
        "numpy: ",
        "free_memory_gib: ",
        "nvidia-smi: name Pretended GPU; driver_version 550.54; compute_cap 8.9; memory.free 5 MiB",
        "CUDA: gpu Pretended GPU; target sm89; driver_supports 12.6; free_mib 5",
        "jetpack: 6.1+b123",
        "power_mode: MAXN (0)",
        "onnxruntime: works",
        "self-test passed, 0.50 ms a run",
        "tensorrt: no: it is not installed",
        "works here: onnxruntime",
        "auto takes onnxruntime, or an engine of the bundle",
    ):
        assert text in page, f"{text}\n{page}"


@pytest.mark.parametrize(
    ("vendor", "auto"), [("GenuineIntel", "openvino"), ("AuthenticAMD", "onnxruntime")]
)
def test_the_page_says_what_auto_takes(
    monkeypatch: pytest.MonkeyPatch, vendor: str, auto: str
) -> None:
    kind = (vendor, frozenset({"avx512f"}))
    monkeypatch.setattr("structsam_export.runtimes.auto_preference.cpu_kind", lambda: kind)
    here = ("openvino", "onnxruntime", "tensorrt")
    found = examine(lambda subject: dict(WORKS if subject in here else LACKS))
    assert found["auto"] == auto
    assert f"auto takes {auto}, or an engine of the bundle" in page_lines(found)


def test_a_check_that_breaks_is_a_line(
    monkeypatch: pytest.MonkeyPatch,
    board: Path,  # noqa: F811
) -> None:
    def breaks(*arguments: Any) -> Any:
        raise ValueError("planted")

    for name in ("tool_versions", "hardware"):
        monkeypatch.setattr(examination, name, breaks)
    monkeypatch.setattr(examination.gpu, "nvidia_smi", breaks)
    monkeypatch.setattr(examination.jetson, "is_jetson", breaks)
    found = examine(lambda subject: {"problem": "the process died"}, root=board)
    page = "\n".join(page_lines(found))
    assert found["works"] == [] and "works here: no runtime" in page
    assert found["auto"] is None and "auto takes" not in page
    assert page.count("ValueError: planted") == 4
    assert page.count("the process died") == len(BACKENDS) + 1
    json.dumps(found)


def test_without_any_optional_package_every_runtime_says_what_to_install() -> None:
    code = (
        f"import json, sys\nsys.modules.update(dict.fromkeys({list(EXTRA_OF)!r}))\n"
        "from structsam_export.doctor.examination import examine\n"
        "from structsam_export.doctor.process import ask\n"
        "print(json.dumps(examine(ask)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["works"] == []
    for name, facts in found["runtimes"].items():
        assert "pip install 'structsam[" in facts["reason"], f"{name}: {facts}"
        assert facts["self_test"] == "not run"


def test_a_process_of_its_own_answers() -> None:
    pytest.importorskip("onnxruntime")
    assert process.ask_in_process("onnxruntime")["self_test"] == "passed"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the process that tried it ended with code -11"),
        ("raise SystemExit('no such symbol')", "ended with code 1: no such symbol"),
        ("import time; time.sleep(9)", "it took more than 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, problem: str
) -> None:
    file = tmp_path / "onnxruntime.py"
    file.write_text(body)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(process, "PATIENCE", 1 if "sleep" in body else 60)
    assert problem in process.ask_in_process("onnxruntime")["problem"]


@pytest.mark.parametrize("works", [True, False])
def test_the_exit_code(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = answers if works else (lambda subject: dict(LACKS))
    monkeypatch.setattr(examination, "examine", lambda say: examine(ask, say))
    assert cli.run(["doctor"]) == (0 if works else 1)
    assert "works here: " in capsys.readouterr().out
    assert cli.run(["doctor", "--json"]) == (0 if works else 1)
    assert json.loads(capsys.readouterr().out)["works"] == (["onnxruntime"] if works else [])


def test_the_command_itself_loads_no_runtime() -> None:
    code = (
        "import sys\n"
        "from structsam_export.doctor.examination import examine\n"
        "examine(lambda subject: {'works': False, 'reason': ''})\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"'torch'", "'onnxruntime'", "'tensorrt_rtx'", "'cuda'", "'onnx'"} & set(
        done.stdout.strip("[]\n").split(", ")
    )
