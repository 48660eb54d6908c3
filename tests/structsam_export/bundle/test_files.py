"""No name that comes from a file leads out of its folder; no entry is lost to another writer."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from structsam.errors import UserError
from structsam_export.bundle.files import FileRecord, inside, locked, size_text
from structsam_export.bundle.folder import Bundle, open_bundle
from tests.structsam_export.small_bundle import make_bundle

OUTSIDE = ["/etc/passwd", "../x", "a/../../x", "C:\\x", "C:x", "\\\\host\\x", "a\\..\\..\\x", "\\x"]


@pytest.mark.parametrize("name", [*OUTSIDE, "", "a\0b", 3, None])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UserError) as caught:
        inside(tmp_path, name)
    assert str(tmp_path) in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["encoder.onnx", "reference/a..b.png", "a/./b", "engines/x y.é"])
def test_a_name_that_stays_inside(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_a_link_may_point_inside_and_not_outside(tmp_path: Path) -> None:
    bundle, other = tmp_path / "bundle", tmp_path / "bundle-2"  # a common prefix is no folder
    for folder in (bundle, other):
        folder.mkdir()
        (folder / "file").touch()
    (bundle / "good").symlink_to("file")
    (bundle / "bad").symlink_to(other / "file")
    (bundle / "folder").symlink_to(other)
    (tmp_path / "link").symlink_to(bundle)
    assert inside(bundle, "good") == bundle / "good"
    assert inside(tmp_path / "link", "file") == tmp_path / "link" / "file"
    for name in ("bad", "folder/file", "folder/not there yet"):
        with pytest.raises(UserError, match="is a link to .*bundle-2"):
            inside(bundle, name)


def in_files(manifest: dict[str, Any], name: str) -> None:
    manifest["files"][name] = {"size": 0, "sha256": "0" * 64}


def in_encoder(manifest: dict[str, Any], name: str) -> None:
    manifest["encoder"]["file"] = name


def in_engines(manifest: dict[str, Any], name: str) -> None:
    manifest["engines"] = [{"file": name}]


def in_photos(manifest: dict[str, Any], name: str) -> None:
    manifest["reference_images"] = [name]


def in_name(manifest: dict[str, Any], name: str) -> None:
    manifest["name"] = name


@pytest.mark.parametrize("place", [in_files, in_encoder, in_engines, in_photos, in_name])
def test_a_manifest_that_names_files_elsewhere_is_refused(
    tmp_path: Path, place: Callable[[dict[str, Any], str], None]
) -> None:
    """Unverified, too: engines and ONNX files are executable input."""
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "x").touch()
    for name in ("../x", str(tmp_path / "x")):
        place(bundle.manifest, name)
        bundle.save_manifest()
        for verify in (True, False):
            with pytest.raises(UserError, match="outside of that folder"):
                open_bundle(bundle.path, verify=verify)


def test_damage_is_told_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    record = FileRecord.from_dict(vars(FileRecord.of(file)))
    assert record.damage(file) is None
    file.write_bytes(b"abd")
    assert record.damage(file, digest=False) is None
    assert record.damage(file) == "was altered: its SHA-256 is not the recorded one"
    file.write_bytes(b"ab")
    assert record.damage(file) == "was altered: 2 bytes, not 3"
    file.unlink()
    assert record.damage(file) == "is missing"


def test_sizes_are_megabytes_of_a_million() -> None:
    assert [size_text(size) for size in (0, 450_000, 9_940_000, 10_400_000, 2**30)] == [
        "0.0 MB", "0.5 MB", "9.9 MB", "10 MB", "1074 MB",
    ]  # fmt: skip


def test_a_lock_is_waited_for_and_says_so(tmp_path: Path) -> None:
    file, order, told = tmp_path / "made" / ".lock", [], threading.Event()

    def second() -> None:
        with locked(file, waiting=told.set):
            order.append("second")

    with locked(file, waiting=lambda: order.append("waited for nobody")):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_lock_in_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write .*Permission denied"), locked(tmp_path / "x"):
        pass


def add_engine(folder: Path, opened: Any, count: int) -> None:
    bundle = open_bundle(folder, verify=False)
    opened.set()
    for index in range(count):
        with bundle.manifest_to_change() as manifest:
            manifest["engines"] = [*manifest.get("engines", []), {"file": f"other-{index}"}]


def test_two_processes_lose_no_entry(tmp_path: Path) -> None:
    """The other one wants to write while this one is between reading and writing."""
    bundle = make_bundle(tmp_path / "bundle")
    context = multiprocessing.get_context("spawn")
    opened = context.Event()
    other = context.Process(target=add_engine, args=(bundle.path, opened, 3))
    other.start()
    assert opened.wait(120)
    for index in range(3):
        with bundle.manifest_to_change() as manifest:
            other.join(1)
            manifest["engines"] = [*manifest.get("engines", []), {"file": f"own-{index}"}]
    other.join(120)
    assert other.exitcode == 0
    found = sorted(entry["file"] for entry in open_bundle(bundle.path).manifest["engines"])
    assert found == [f"{who}-{index}" for who in ("other", "own") for index in range(3)]


def test_an_altered_manifest_is_never_signed_again(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    file = bundle.path / "manifest.json"
    altered = file.read_text().replace('"fp16"', '"fp32"')
    file.write_text(altered)
    with (
        pytest.raises(UserError, match="was changed after it was written"),
        bundle.manifest_to_change() as manifest,
    ):
        manifest["note"] = "x"
    assert file.read_text() == altered


def test_what_fails_in_between_is_not_saved(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(ZeroDivisionError), bundle.manifest_to_change() as manifest:
        manifest["note"] = 1 / 0
    assert "note" not in open_bundle(bundle.path).manifest


def test_keys_of_another_version_are_kept(tmp_path: Path) -> None:
    bundle: Bundle = make_bundle(tmp_path / "bundle")
    bundle.manifest["from the future"] = {"a": [1]}
    bundle.save_manifest()
    with open_bundle(bundle.path).manifest_to_change() as manifest:
        manifest["parity"] = None
    assert open_bundle(bundle.path).manifest["from the future"] == {"a": [1]}
