"""`~` in what is typed: the home folder, a file of that name, or a refusal of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.cli.main import run
from structsam_export.cli.photo_paths import all_from_home, from_home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_the_home_folder(home: Path) -> None:
    assert from_home(Path("~/a.png")) == home / "a.png"
    assert from_home("~/photos/*.jpg") == str(home / "photos" / "*.jpg")
    assert all_from_home([Path("~"), Path("b.png")]) == [home, Path("b.png")]
    assert from_home(None) is None and all_from_home(None) is None


def test_a_file_or_a_pattern_that_is_nobodys_home(tmp_path: Path) -> None:
    Path("~no.such.user.png").touch()
    assert from_home(Path("~no.such.user.png")) == tmp_path / "~no.such.user.png"
    assert from_home("~no.such.user*") == str(tmp_path / "~no.such.user*")
    with pytest.raises(UserError, match="names no user whose home"):
        from_home(Path("~no.such.user/a.png"))


@pytest.mark.parametrize(
    "typed",
    [
        "predict b ~no.such.user.png",
        "everything b ~no.such.user.png",
        "check b --image ~no.such.user.png",
        "segment b ~no.such.user --out out",
        "segment b list.txt --photos ~no.such.user --out out",
        "tune --images ~no.such.user",
        "inspect --image ~no.such.user.png",
        "export --calibrate ~no.such.user",
    ],
)
def test_commands_refuse_it_in_one_line(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed.split()) == 2
    told = capsys.readouterr().err
    assert "names no user whose home" in told and "Traceback" not in told
