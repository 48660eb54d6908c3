"""Polygraphy's command line with TensorRT for RTX, which needs no GPU to parse and build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_with_rtx(*words: str) -> str:
    """Run a command in a process of its own, where Polygraphy takes RTX; return what it prints."""
    pytest.importorskip("polygraphy", reason="pip install 'structsam[polygraphy]'")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    program = "import sys; from polygraphy.tools import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def assert_fully_supported(graph: Path) -> None:
    """TensorRT's parser takes every node of an ONNX file."""
    assert "Graph is fully supported by TensorRT" in run_with_rtx(
        "inspect", "capability", str(graph)
    )
