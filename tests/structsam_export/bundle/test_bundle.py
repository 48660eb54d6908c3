"""A bundle that was changed, cut or left half written is never mistaken for a whole one."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.engine_entries import differences
from structsam_export.bundle.files import FileRecord
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import MANIFEST, SCHEMA_VERSION, Part, TensorSpec
from structsam_export.bundle.weights_source import ModelRecord
from tests.structsam_export.small_bundle import make_bundle


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a manifest that hold no others; empty containers count."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return 0 if value is None else [0]


def changed(manifest: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    result = copy.deepcopy(manifest)
    holder: Any = result
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = other(holder[path[-1]])
    return result


def write_manifest(folder: Path, manifest: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_every_changed_field_is_noticed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_manifest(tmp_path, tiny_bundle.manifest)
    assert open_bundle(tmp_path, verify=False).manifest == json.loads(
        json.dumps(tiny_bundle.manifest)
    )
    paths = list(leaves(tiny_bundle.manifest))
    assert len(paths) > 100
    unnoticed = []
    for path in paths:
        write_manifest(tmp_path, changed(tiny_bundle.manifest, path))
        try:
            open_bundle(tmp_path, verify=False)
        except UserError as error:
            assert str(tmp_path) in str(error)
        else:
            unnoticed.append(path)
    assert unnoticed == []


def test_every_missing_or_additional_field_is_noticed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for key in tiny_bundle.manifest:
        write_manifest(tmp_path, {k: v for k, v in tiny_bundle.manifest.items() if k != key})
        with pytest.raises(UserError, match=r"manifest\.json"):
            open_bundle(tmp_path, verify=False)
    write_manifest(tmp_path, {**tiny_bundle.manifest, "note": "edited"})
    with pytest.raises(UserError, match=r"was changed after it was written\. Export"):
        open_bundle(tmp_path, verify=False)


def test_the_manifest_survives_json(own_bundle: Bundle) -> None:
    before = json.loads(json.dumps(own_bundle.manifest))
    own_bundle.save_manifest()
    assert open_bundle(own_bundle.path).manifest == before


def test_a_newer_schema_names_the_update(own_bundle: Bundle) -> None:
    own_bundle.manifest["schema_version"] = SCHEMA_VERSION + 1
    own_bundle.save_manifest()
    with pytest.raises(UserError, match="schema 3, and this structsam reads up to 2") as caught:
        open_bundle(own_bundle.path)
    assert "pip install --upgrade structsam" in str(caught.value)


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bundle at .*structsam-export export"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(UserError, match=r"is not a bundle: it has no manifest\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"schema_version": 1', b"\xff\xfe{}", b"<html></html>"],
    ids=["empty", "brace", "truncated", "no utf-8", "web page"],
)
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read .*Export the bundle again"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"schema_version": "1"}', "null"])
def test_json_that_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="is not a structsam manifest"):
        open_bundle(tmp_path)


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        open_bundle(tmp_path)


def test_every_file_is_recorded_and_needed(own_bundle: Bundle) -> None:
    """Reports are not: an interrupted check must not spoil a bundle."""
    written_by_check = {MANIFEST, "parity.json", "parity.html"}
    files = {
        file.relative_to(own_bundle.path).as_posix()
        for file in own_bundle.path.rglob("*")
        if file.is_file() and file.name not in written_by_check
    }
    assert set(own_bundle.manifest["files"]) == files
    for name in sorted(files):
        file = own_bundle.path / name
        hidden = file.with_name("hidden")
        file.rename(hidden)
        with pytest.raises(UserError, match="Copy it again, or export") as caught:
            own_bundle.verify(own_bundle.files)
        assert f"bundle {own_bundle.path}: {name} is missing" in str(caught.value)
        if file.suffix == ".onnx":
            with pytest.raises(UserError, match="is missing"):
                open_bundle(own_bundle.path)
        else:
            assert name in own_bundle.reference_files
            open_bundle(own_bundle.path)
        hidden.rename(file)
    own_bundle.verify(own_bundle.files)


@pytest.mark.parametrize("damage", ["one byte", "truncated", "longer"])
def test_an_altered_file_is_noticed(own_bundle: Bundle, damage: str) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        file = own_bundle.path / name
        good = file.read_bytes()
        middle = len(good) // 2
        file.write_bytes(
            {
                "one byte": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
                "truncated": good[:-1],
                "longer": good + b"\0",
            }[damage]
        )
        with pytest.raises(UserError, match=f"{name} was altered: ") as caught:
            open_bundle(own_bundle.path)
        assert str(own_bundle.path) in str(caught.value) and "again" in str(caught.value)
        open_bundle(own_bundle.path, verify=False)
        file.write_bytes(good)


def test_a_copied_bundle_opens_anywhere(own_bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "another place" / "renamed"
    shutil.copytree(own_bundle.path, moved)
    opened = open_bundle(str(moved))
    assert opened.path == moved and opened.manifest == own_bundle.manifest
    assert opened.onnx_path("encoder") == moved / "encoder.onnx"


def test_what_the_code_reads_of_a_manifest_has_types(own_bundle: Bundle) -> None:
    bundle = open_bundle(own_bundle.path)
    assert bundle.model == ModelRecord("tiny", "random", 0) and bundle.model.sha256 is None
    assert bundle.model.to_dict() == bundle.manifest["model"]
    assert bundle.files["encoder.onnx"] == FileRecord.of(bundle.path / "encoder.onnx")
    assert bundle.reference_files == ["reference/scene.png", "reference/scene.png.npz"]
    assert bundle.engines == []
    verdict = bundle.parity_verdict
    assert verdict is not None and vars(verdict) == bundle.manifest["parity"]
    assert verdict.passed and verdict.backends == {"onnxruntime": "passed"}


def test_a_bundle_before_its_first_check_and_engine(own_bundle: Bundle) -> None:
    del own_bundle.manifest["parity"], own_bundle.manifest["engines"]
    own_bundle.save_manifest()
    bundle = open_bundle(own_bundle.path)
    assert bundle.parity_verdict is None and bundle.engines == []


@pytest.mark.parametrize(
    ("record", "title"),
    [
        (ModelRecord("vit_b", "random", 3), "random weights, seed 3"),
        (ModelRecord("vit_t", "embedded", None, {"file": "a"}), "the weights of the package"),
        (ModelRecord("vit_b", "checkpoint", None, {"file": "b.pth"}), "b.pth"),
    ],
)
def test_where_weights_come_from_survives_json(record: ModelRecord, title: str) -> None:
    assert ModelRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.title == title and record.is_random is (record.weights == "random")


def test_differences_names_the_field() -> None:
    assert differences({"a": 1, "b": [2]}, {"a": 1, "b": [2]}) is None
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b changed: 2 -> 3"
    assert differences({"a": 1}, {"a": 1, "new": "x"}) == "new changed: None -> 'x'"
    assert differences({"a": 1, "gone": 5}, {"a": 1}) == "gone changed: 5 -> None"


def test_a_bundle_without_a_decoder_says_so_and_other_names_are_a_defect(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    assert made.parts == ("encoder", "decoder")
    manifest = {key: value for key, value in made.manifest.items() if key != "decoder"}
    alone = Bundle(made.path, manifest)
    assert alone.parts == ("encoder",) and alone.part("encoder") == made.part("encoder")
    with pytest.raises(UserError, match="has no decoder: its model, .* is an image encoder alone"):
        alone.part("decoder")
    with pytest.raises(KeyError):
        alone.part("neck")  # type: ignore[arg-type]


def test_part_survives_json() -> None:
    part = Part(
        "decoder.onnx",
        (TensorSpec("point_coords", ("P", "K", 2), "float32"),),
        (TensorSpec("scores", ("P", 4), "float32"),),
        {"P": (1, 1, 64), "K": (1, 2, 16)},
    )
    assert Part.from_dict(json.loads(json.dumps(part.to_dict()))) == part


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    atomic.write_text(file, "old")

    def half(self: Path, *_: Any, **__: Any) -> None:
        with self.open("w") as stream:
            stream.write("ne")
        no_space()

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match="No space left on device") as caught:
        atomic.write_text(file, "new")
    assert str(file) in str(caught.value)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_full_disk_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="enough free space"), atomic.staged_folder(tmp_path / "b"):
        no_space()
    assert os.listdir(tmp_path) == []


def test_any_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old").touch()
    for error in (ValueError, KeyboardInterrupt, UserError):
        with pytest.raises(error), atomic.staged_folder(final) as folder:
            (folder / "new").touch()
            raise error("in the middle")
        assert os.listdir(tmp_path) == ["bundle"] and os.listdir(final) == ["old"]
    with atomic.staged_folder(final) as folder:
        (folder / "new").touch()
        assert os.listdir(final) == ["old"]
    assert os.listdir(tmp_path) == ["bundle"] and os.listdir(final) == ["new"]


def test_a_failing_rename_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old").touch()
    rename, calls = os.replace, []

    def fails_once(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "a file inside is open")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(UserError), atomic.staged_folder(final) as folder:
        (folder / "new").touch()
    assert os.listdir(final) == ["old"]


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), atomic.staged_folder(tmp_path / "file/b"):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_the_folder_of_a_file_must_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        atomic.write_text(tmp_path / "file" / "x.json", "{}")


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for stage in (atomic.staged_folder, atomic.staged_file):
        with pytest.raises(UserError, match=r"Permission denied.*write to"), stage(tmp_path / "b"):
            pass


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot ask whether a process lives")
def test_leftovers_of_dead_processes_only(tmp_path: Path) -> None:
    dead, living = dead_pid(), os.getppid()
    for name in (f".b.tmp-{dead}", f".b.tmp-{dead}-old", f".b.tmp-{living}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "encoder.onnx").touch()
    (tmp_path / f".file.tmp-{dead}").touch()
    (tmp_path / ".b.tmp-note").touch()  # nobody's: no process id
    with atomic.staged_folder(tmp_path / "b"):
        pass
    kept = {"b", f".b.tmp-{living}", f".file.tmp-{dead}", ".b.tmp-note"}
    assert set(os.listdir(tmp_path)) == kept
    atomic.write_text(tmp_path / "file", "x")
    assert set(os.listdir(tmp_path)) == (kept | {"file"}) - {f".file.tmp-{dead}"}


def test_a_leftover_of_an_earlier_process_with_this_process_id(tmp_path: Path) -> None:
    """In a container the main process has the same number in every run."""
    leftover = tmp_path / f".b.tmp-{os.getpid()}"
    leftover.mkdir()
    (leftover / "half").touch()
    with atomic.staged_folder(tmp_path / "b") as folder:
        (folder / "whole").touch()
    assert os.listdir(tmp_path) == ["b"] and os.listdir(tmp_path / "b") == ["whole"]
