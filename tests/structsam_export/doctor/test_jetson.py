"""Jetson's own files and programs, as several releases have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from structsam_export.doctor import jetson

RELEASES = {
    "# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t186ref, EABI: aarch64": "32.7.4",
    "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64": "35.4.1",
    "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64": "36.4.0",
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64": "38.2.0",
}
MODES = {
    "NV Power Mode: MAXN\n0\n": "MAXN (0)",
    "NV Power Mode: 15W\n2\n": "15W (2)",
    "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n": "MODE_30W (2)",
    "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n": "MODE_15W_6CORE (2)",
    "NV Power Mode: 120W": "120W",
}


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of an Orin whose programs are all there."""
    bin_folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(bin_folder))
    program(bin_folder, "nvpmodel", "printf 'NV Power Mode: MAXN\\n0\\n'")
    program(bin_folder, "dpkg-query", "printf 6.1+b123")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(f"{list(RELEASES)[2]}, DATE: Fri Sep 13\n")
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin NX\x00")
    return tmp_path


def test_all_of_it(board: Path) -> None:
    assert jetson.examine(board) == {
        "board": "NVIDIA Jetson Orin NX",
        "l4t": "36.4.0",
        "jetpack": "6.1+b123",
        "power_mode": "MAXN (0)",
    }


def test_any_other_machine(tmp_path: Path) -> None:
    assert jetson.examine(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5\x00")
    assert jetson.examine(tmp_path) is None


@pytest.mark.parametrize(("text", "release"), RELEASES.items())
def test_releases(board: Path, text: str, release: str) -> None:
    (board / "etc/nv_tegra_release").write_text(text)
    assert jetson.l4t_release(board) == release


@pytest.mark.parametrize(("text", "mode"), MODES.items())
def test_power_modes(board: Path, text: str, mode: str) -> None:
    program(board / "bin", "nvpmodel", f"printf '{text}'")
    assert jetson.power_mode() == mode


def test_a_board_that_was_only_flashed(board: Path) -> None:
    for script in ("echo 'no packages found matching nvidia-jetpack' >&2; exit 1", "true"):
        program(board / "bin", "dpkg-query", script)
        assert jetson.jetpack(board).startswith("6.x (by L4T 36.4.0; the package")
    (board / "etc/nv_tegra_release").write_text("# R40 (release), REVISION: 1.0")
    assert jetson.jetpack(board).startswith("unknown to this version (by L4T 40.1.0;")


def test_what_breaks_is_a_reason_and_hides_nothing(board: Path) -> None:
    program(board / "bin", "nvpmodel", "echo 'NVPM ERROR: needs root' >&2; exit 3")
    (board / "etc/nv_tegra_release").write_text("something else")
    found = jetson.examine(board)
    assert found is not None and found["jetpack"] == "6.1+b123"
    assert found["power_mode"] == {"problem": "nvpmodel ended with code 3: NVPM ERROR: needs root"}
    assert found["l4t"]["problem"].startswith("ValueError: /etc/nv_tegra_release begins with")
    (board / "bin/nvpmodel").unlink()
    (board / "etc/nv_tegra_release").unlink()
    found = jetson.examine(board)  # a container, in which only the device tree tells
    assert found is not None and found["power_mode"] == {"problem": "there is no nvpmodel"}
    assert found["l4t"]["problem"].startswith("there is no ")
