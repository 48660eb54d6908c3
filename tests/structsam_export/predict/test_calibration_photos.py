"""The photos of calibration: which are taken, which held out, and one clear line for the rest."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.predict.calibration_photos import CalibrationPhotos


def many(folder: Path, source: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        shutil.copyfile(source / f"{index % 16:02}.png", folder / f"{index:03}.PNG")
    return folder


def test_a_quarter_is_held_out_and_other_files_are_left(calibration_folder: Path) -> None:
    photos = CalibrationPhotos.of(calibration_folder)
    assert [path.name for path in photos.held_out] == ["03.png", "07.png", "11.png", "15.png"]
    assert len(photos.measured) == 12 and not {*photos.measured} & {*photos.held_out}
    told = photos.to_dict()
    first = hashlib.sha256((calibration_folder / "00.png").read_bytes()).hexdigest()
    assert told["measured"][0] == {"name": "00.png", "sha256": first}
    assert len(told["held_out"]) == 4


def test_of_too_many_photos_some_are_taken_and_it_is_said(
    calibration_folder: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    photos = CalibrationPhotos.of(many(tmp_path / "many", calibration_folder, 200), notes.append)
    names = sorted(path.name for path in (*photos.measured, *photos.held_out))
    assert len(set(names)) == 128 and names[0] == "000.PNG" and names[-1] > "197"
    assert len(photos.held_out) == 8
    assert "200 photos: 128 of them are used" in notes[0]


def test_what_cannot_be_calibrated_on_is_told_in_one_line(
    calibration_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        CalibrationPhotos.of(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is a file"):
        CalibrationPhotos.of(calibration_folder / "00.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds 0 photo\(s\), and calibration needs 16 to 128"):
        CalibrationPhotos.of(tmp_path / "empty")
    folder = many(tmp_path / "broken", calibration_folder, 16)
    whole = (folder / "009.PNG").read_bytes()
    (folder / "009.PNG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="009.PNG is damaged or truncated"):
        CalibrationPhotos.of(folder)
    (folder / "009.PNG").unlink()
    with pytest.raises(UserError, match=r"holds 15 photo\(s\)"):
        CalibrationPhotos.of(folder)
