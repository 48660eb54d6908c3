"""Every script can still be read: what it imports is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NEEDS = {"locustfile.py": "locust"}
ONE = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
for file in sys.argv[2:]:
    spec = importlib.util.spec_from_file_location("script", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["script"] = module
    spec.loader.exec_module(module)
    print(file)
"""


def test_every_script_finds_what_it_imports() -> None:
    pytest.importorskip("torch")
    files = [
        str(file)
        for file in sorted(SCRIPTS.glob("*.py"))
        if file.name not in NEEDS or installed(NEEDS[file.name])
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(SCRIPTS), *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == files


def installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
