"""What a client gets that decodes by itself: the decoder, and the files of its runtime."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from structsam_export.bundle.folder import Bundle
from structsam_export.serve.app import make_app
from structsam_export.serve.model_routes import describe_model
from structsam_export.serve.service import Service

RUNTIME = files("structsam_export") / "assets" / "page" / "onnxruntime_web"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    yield TestClient(make_app(service))


def test_the_decoder_is_that_of_the_bundle(client: TestClient, tiny_bundle: Bundle) -> None:
    told = client.get("/v1/model").json()
    assert (told["bundle"], told["image_size"]) == (tiny_bundle.name, 256)
    assert (told["mask_size"], told["max_points"]) == ([64, 64], 16)
    assert told["upsample_probabilities"] is False and told["why_not"] is None
    answer = client.get("/v1/model/decoder.onnx")
    assert answer.content == tiny_bundle.onnx_path("decoder").read_bytes()
    assert told["decoder"] == {
        "size": len(answer.content), "sha256": hashlib.sha256(answer.content).hexdigest(),
    }  # fmt: skip
    tag = answer.headers["etag"]
    assert tag == f'"{told["decoder"]["sha256"]}"'
    again = client.get("/v1/model/decoder.onnx", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/v1/model/decoder.onnx", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


def test_a_photo_says_where_it_lies_in_the_input(client: TestClient, photo: bytes) -> None:
    assert client.post("/v1/images", content=photo).json()["input_size"] == [192, 256]


def test_only_who_bears_the_token_gets_it(service: Service) -> None:
    client = TestClient(make_app(service, token="secret"))
    for url in ("/v1/model", "/v1/model/decoder.onnx"):
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"Authorization": "Bearer secret"}).status_code == 200


def another(bundle: Bundle, change: str, value: Any) -> Bundle:
    """The bundle with another contract."""
    manifest = json.loads(json.dumps(bundle.manifest))
    decoder = manifest["decoder"]
    if change == "input":
        decoder["inputs"].append({"name": value, "shape": [1], "dtype": "float32"})
    elif change == "dtype":
        decoder["inputs"][0]["dtype"] = value
    elif change == "P":
        decoder["profile"]["P"] = [value, value, value]
    elif change == "file":
        manifest["files"][value] = {"size": 1, "sha256": "0"}
    elif change == "record":
        del manifest["files"][value]
    elif change == "box":
        box = {"name": value, "shape": [1, 4], "dtype": "float32"}
        manifest["encoder"]["inputs"].append(box)
    return Bundle(bundle.path, manifest)


@pytest.mark.parametrize(
    ("change", "value", "reason"),
    [
        ("input", "hq_features", "more than an embedding"),
        ("dtype", "float16", "not float32"),
        ("P", 4, "4 prompts at least"),
        ("file", "decoder.onnx.data", "second file"),
        ("box", "prompt_box", "prompt-aware"),
        ("record", "decoder.onnx", "no SHA-256"),
    ],
)
def test_decoders_that_the_page_cannot_feed(
    tiny_bundle: Bundle, change: str, value: Any, reason: str
) -> None:
    told = describe_model(another(tiny_bundle, change, value))
    assert told.decoder is None and told.why_not is not None
    assert re.search(reason, told.why_not)


def test_a_decoder_that_is_not_offered_is_not_found(
    service: Service, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "bundle", another(tiny_bundle, "input", "hq_features"))
    answer = TestClient(make_app(service)).get("/v1/model/decoder.onnx")
    assert answer.status_code == 404 and "more than an embedding" in answer.json()["error"]


def test_an_embedding_beyond_fp16_stays_on_the_server(
    client: TestClient, service: Service, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = client.post("/v1/images", content=photo).json()["id"]
    features = service.image(image_id).features
    assert features is not None
    embedding = features["image_embeddings"]
    large = 1e6 * embedding.numpy()
    monkeypatch.setattr(type(embedding), "numpy", lambda self: large)
    answer = client.get(f"/v1/images/{image_id}/embedding")
    assert answer.status_code == 409
    assert "values beyond FP16" in answer.json()["error"]


def test_the_files_of_the_page_are_strict_and_known_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/page/onnxruntime_web/ort-wasm-simd-threaded.wasm"
    packed = client.get(url, headers={"Accept-Encoding": "gzip"})
    plain = client.get(url, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers and plain.content == packed.content
    assert plain.headers["content-type"] == "application/wasm" and plain.content[:4] == b"\0asm"
    again = client.get(url, headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    monkeypatch.setattr(Path, "read_bytes", None)  # what was read once is in memory
    assert client.get(url).content == plain.content
    monkeypatch.undo()
    for path in (
        "/",
        url,
        "/page/decoder_worker.js",
        "/page/onnxruntime_web/ort.wasm.bundle.min.mjs",
    ):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src 'self' 'wasm-unsafe-eval';" in policy and "unsafe-inline" not in policy


def test_what_comes_from_others_is_unaltered_and_has_its_licence() -> None:
    notices = (Path(__file__).parents[3] / "THIRD_PARTY_NOTICES.md").read_text("utf-8")
    said = dict(re.findall(r"`([\w.-]+)` \(SHA-256 `([0-9a-f]{64})`", notices))
    assert set(said) == {"ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"}
    for name, digest in said.items():
        file = RUNTIME / name
        data = file.read_bytes() if file.is_file() else None
        if data is None:
            data = gzip.decompress((RUNTIME / f"{name}.gz").read_bytes())
        assert hashlib.sha256(data).hexdigest() == digest
    assert "MIT License" in (RUNTIME / "LICENSE").read_text("utf-8")
    assert (RUNTIME / "ThirdPartyNotices.txt").is_file()
