"""A server of the shared tiny bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from structsam_export.bundle.folder import Bundle

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="needs the extra `serve`")


@pytest.fixture(scope="module")
def service(tiny_bundle: Bundle) -> Iterator[Any]:
    from structsam_export.serve.service import Service

    made = Service(tiny_bundle, "onnxruntime", threads=1)
    made.warm()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def photo(tiny_photo: Path) -> bytes:
    return tiny_photo.read_bytes()
