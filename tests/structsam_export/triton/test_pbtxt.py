"""The text format: what is written is what protobuf reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from structsam_export.triton.pbtxt import Word, pbtxt
from structsam_export.triton.repository import Repository, write_repository
from structsam_export.triton.settings import TritonSettings

pytest.importorskip("onnx")

from tests.structsam_export.sam_like_bundle import make_sam_like_bundle
from tests.structsam_export.triton.bundles import (
    batched_bundle,
    bundle_with_more_outputs,
    prompt_aware_bundle,
    put_plans,
)
from tests.structsam_export.triton.server import environment, python_of

PARSER = Path(__file__).with_name("parse_configs.py")


def test_messages_lists_words_and_quotes() -> None:
    message = {
        "name": 'a "b" \\ ü',
        "kind": Word("KIND_CPU"),
        "dims": [-1, 3],
        "dynamic": True,
        "group": [{"count": 1}, {"count": 2}],
    }
    assert pbtxt(message).splitlines() == [
        'name: "a \\"b\\" \\\\ ü"',
        "kind: KIND_CPU",
        "dims: [-1, 3]",
        "dynamic: true",
        "group {",
        "  count: 1",
        "}",
        "group {",
        "  count: 2",
        "}",
    ]
    with pytest.raises(TypeError, match="float"):
        pbtxt({"a": 1.5})


def test_every_config_parses_as_model_config(tmp_path: Path) -> None:
    """Every kind of model there is, as Triton's own message reads it."""
    folder = environment()
    made: list[Repository] = []
    for make in (
        make_sam_like_bundle,
        prompt_aware_bundle,
        bundle_with_more_outputs,
        lambda path: batched_bundle(path, 4),
    ):
        bundle = make(tmp_path / f"bundle{len(made)}")
        made.append(write_repository(bundle, tmp_path / f"out{len(made)}"))
    put_plans(bundle)
    settings = TritonSettings(backend="tensorrt")
    made.append(write_repository(bundle, tmp_path / "plans", settings))
    command = [python_of(folder), PARSER, *(repository.path for repository in made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout)
    for repository in made:
        for name, config in repository.models.items():
            found = parsed[str(repository.path / name / "config.pbtxt")]
            assert comparable(found) == comparable(as_json(config))


def as_json(value: Any) -> Any:
    """A config as protobuf's JSON form shows it: maps as objects, defaults left out."""
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item not in (0, "KIND_AUTO")}
        return {key: as_json(item) for key, item in given.items()}
    if isinstance(value, list):
        if value and all(
            isinstance(item, dict) and set(item) == {"key", "value"} for item in value
        ):
            return {item["key"]: as_json(item["value"]) for item in value}
        return [as_json(item) for item in value]
    return value


def comparable(value: Any) -> Any:
    """Protobuf's JSON writes 64-bit numbers as text, and one repeated message as a list."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value if isinstance(value, bool) else str(value)
