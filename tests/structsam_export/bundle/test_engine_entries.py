"""Every field of a fingerprint is changed once: the engine must be stale, and the reason named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from structsam.errors import UserError
from structsam_export.bundle.engine_entries import (
    BuildSettings,
    engine_file,
    engine_status,
    find_entry,
    fingerprint,
    record_engine,
)
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import EngineEntry
from structsam_export.engines.build import build
from tests.structsam_export.small_bundle import make_bundle

BACKEND, TARGET = "tensorrt", "sm87"
OTHER = {
    "onnx_sha256": "0" * 64,
    "onnx_data_sha256": "1" * 64,
    "backend": "tensorrt-rtx",
    "backend_version": "10.4.0",
    "target": "sm89",
    "gpu": "another GPU",
    "precision": "fp32",
    "profile": {"P": [1, 1, 8]},
    "workspace_mb": 64,
    "optimization_level": 1,
    "tactic_memory_mb": 32,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with a pretended decoder engine, opened again from disk."""
    bundle = make_bundle(tmp_path / "bundle")
    file = bundle.path / engine_file(BACKEND, "decoder", TARGET)
    file.parent.mkdir()
    file.write_bytes(b"engine" * 100)
    record_engine(bundle, BACKEND, "decoder", TARGET, wanted(bundle), 1.23456, {})
    return open_bundle(bundle.path)


def wanted(bundle: Bundle) -> dict[str, Any]:
    return fingerprint(bundle, BACKEND, "decoder", TARGET, "10.3.0", "Orin")


def status(bundle: Bundle, **changed: Any) -> tuple[bool, str]:
    return engine_status(
        bundle, BACKEND, "decoder", TARGET, {**wanted(bundle), **changed}, digest=True
    )


def test_current_after_a_trip_through_json(bundle: Bundle) -> None:
    assert status(bundle) == (True, "the decoder engine for sm87 is current")


def test_the_list_of_planted_changes_is_complete(bundle: Bundle) -> None:
    assert set(OTHER) == set(wanted(bundle))
    assert set(OTHER) >= {field.name for field in dataclasses.fields(BuildSettings)}


@pytest.mark.parametrize("field", OTHER)
def test_every_changed_field_makes_it_stale(bundle: Bundle, field: str) -> None:
    current, reason = status(bundle, **{field: OTHER[field]})
    assert not current
    assert f"is stale: {field} changed: " in reason and repr(OTHER[field]) in reason


@pytest.mark.parametrize("field", OTHER)
def test_every_changed_field_causes_a_rebuild(tmp_path: Path, field: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'structsam[rtx]'")
    bundle = make_bundle(tmp_path / "bundle")
    build(bundle, "tensorrt-rtx", ["sm89"])
    planted = bundle.manifest["engines"][0]["fingerprint"]
    planted[field] = OTHER[field] if planted[field] != OTHER[field] else "something else"
    bundle.save_manifest()
    events: list[Any] = []
    again = build(open_bundle(bundle.path), "tensorrt-rtx", ["sm89"], progress=events.append)
    started = [e for e in events if e.kind == "started"]
    assert len(started) == 1 and started[0].part == "encoder"
    assert f"stale: {field} changed" in started[0].message
    assert again[0].fingerprint[field] != planted[field]


def test_another_onnx_is_noticed(bundle: Bundle) -> None:
    file = bundle.onnx_path("decoder")
    file.write_bytes(file.read_bytes() + b"\n")
    bundle.record_file(file.name)
    assert "stale: onnx_sha256 changed" in status(bundle)[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is missing"), (b"short", "altered: 5 bytes, not 600"), (b"x" * 600, "SHA-256")],
)
def test_a_damaged_file_is_noticed(bundle: Bundle, content: bytes | None, reason: str) -> None:
    file = bundle.path / engine_file(BACKEND, "decoder", TARGET)
    file.unlink() if content is None else file.write_bytes(content)
    current, text = status(bundle)
    assert not current and reason in text and file.name in text


def test_without_digest_only_the_size_counts(bundle: Bundle) -> None:
    (bundle.path / engine_file(BACKEND, "decoder", TARGET)).write_bytes(b"x" * 600)
    assert engine_status(bundle, BACKEND, "decoder", TARGET, wanted(bundle), digest=False)[0]


def test_no_entry(bundle: Bundle) -> None:
    expected = (False, "there is no decoder engine of tensorrt for sm89 yet")
    assert engine_status(bundle, BACKEND, "decoder", "sm89", wanted(bundle)) == expected
    assert find_entry(bundle, BACKEND, "encoder", TARGET) is None


def test_an_entry_is_replaced_and_says_what_it_is(bundle: Bundle) -> None:
    entry = record_engine(bundle, BACKEND, "decoder", TARGET, wanted(bundle), 2.0, {"fused": [0]})
    assert bundle.manifest["engines"] == [vars(entry)]
    assert vars(entry) | {"fingerprint": {}} == {
        "backend": "tensorrt",
        "part": "decoder",
        "target": "sm87",
        "file": "engines/decoder.tensorrt.sm87.engine",
        "size": 600,
        "sha256": entry.sha256,
        "fingerprint": {},
        "build_seconds": 2.0,
        "attention": {"fused": [0]},
    }


def test_settings_survive_the_manifest() -> None:
    settings = BuildSettings(1, 2, 3)
    entry = EngineEntry(BACKEND, "decoder", TARGET, "x", 1, "0", vars(settings) | {"gpu": None}, 1)
    assert BuildSettings.of(EngineEntry.from_dict(json.loads(json.dumps(vars(entry))))) == settings
    with pytest.raises(UserError, match="workspace_mb is 0"):
        BuildSettings(workspace_mb=0)
