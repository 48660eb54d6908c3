"""The Jetson script with pretended programs: what it calls, in which order, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "jetson_build.sh"
PYTHON = "#!/bin/sh\ncase $1 in -) echo 12 ;; -c) echo 10.3.0 ;; esac\n"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not Path("/proc/meminfo").exists(), reason="needs Linux, bash"
)


@pytest.mark.parametrize(
    ("fails", "code", "called"),
    [
        ("nothing", 0, ["build", "check", "doctor"]),
        ("check", 1, ["build", "check", "doctor"]),
        ("build", 2, ["build", "doctor"]),
        ("doctor", 0, ["build", "check", "doctor"]),
    ],
)
def test_it_ends_with_the_doctor_and_the_code_of_the_check(
    tmp_path: Path, fails: str, code: int, called: list[str]
) -> None:
    programs = {
        "bin/uname": "#!/bin/sh\necho aarch64\n",
        "bin/python3": PYTHON,
        "venv/bin/python": PYTHON,
        "venv/bin/structsam-export": (
            f"#!/bin/sh\necho $1 >> {tmp_path}/called\n[ $1 != {fails} ] || exit {code or 1}\n"
        ),
    }
    for name, text in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "manifest.json").write_text("{}")
    script = tmp_path / "jetson_build.sh"
    script.write_text(SCRIPT.read_text().replace("/usr/bin/python3", f"{tmp_path}/bin/python3"))
    done = subprocess.run(
        ["bash", script, tmp_path, "--venv", tmp_path / "venv", "--package", "."],
        env={**os.environ, "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "called").read_text().split() == called
