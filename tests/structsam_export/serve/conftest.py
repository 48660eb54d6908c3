"""A server of the shared tiny bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.image_file import read_image
from tests.structsam_export.serve.chromium import NoChromium, find_chromium

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="needs the extra `serve`")


FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def service(tiny_bundle: Bundle) -> Iterator[Any]:
    from structsam_export.serve.service import Service

    made = Service(tiny_bundle, "onnxruntime", threads=1)
    made.warm()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle, tiny_photo: Path) -> Iterator[Any]:
    """What `predict` uses, with the photo set."""
    with tiny_bundle.predictor("onnxruntime", threads=1) as predictor:
        predictor.set_image(read_image(tiny_photo))
        yield predictor


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle) -> Iterator[Any]:
    from tests.structsam_export.serve.browser_page import Server

    server = Server(tiny_bundle)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="comes with the extra `dev`")
    with playwright.sync_playwright() as engine:
        try:
            found = find_chromium(engine.chromium.executable_path)
        except NoChromium as reason:
            pytest.skip(str(reason))
        browser = engine.chromium.launch(
            executable_path=found.path, args=FLAGS, env=found.environment or None
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photo(tiny_photo: Path) -> bytes:
    return tiny_photo.read_bytes()
