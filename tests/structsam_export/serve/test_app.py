"""The routes, as clients see them: answers, refusals with a reason, and never a 500."""

from __future__ import annotations

import base64
import io
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from structsam.errors import UserError
from structsam.evaluation.mask_rle import decode
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.image_file import read_image
from structsam_export.serve.app import make_app
from structsam_export.serve.drawing import Drawing
from structsam_export.serve.service import Service
from structsam_export.serve.settings import ServeSettings

LIMITS = {"max_body_mb": 1, "max_pixels": 200_000, "max_prompts": 8, "max_answer_pixels": 80_000}


def client_of(bundle: Bundle, token: str | None = None, **settings: Any) -> TestClient:
    service = Service(bundle, "onnxruntime", ServeSettings(**settings), threads=1)
    return TestClient(make_app(service, token, ("testserver",)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tiny_bundle: Bundle) -> Iterator[TestClient]:
    with client_of(tiny_bundle, **LIMITS) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield client


@pytest.fixture(scope="module")
def image_id(client: TestClient, photo: bytes) -> str:
    answer = client.post("/v1/images", content=photo)
    assert answer.status_code == 200
    return str(answer.json()["id"])


def error_of(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    message = str(answer.json()["error"])
    assert "\n" not in message
    return message


def test_a_photo_as_body_or_as_form_is_the_same_photo(client: TestClient, photo: bytes) -> None:
    first = client.post("/v1/images", content=photo).json()
    again = client.post("/v1/images", files={"image": ("x.png", photo, "image/png")}).json()
    assert (first["width"], first["height"]) == (128, 96)
    assert again["id"] == first["id"] and again["cached"] and again["encode_ms"] == 0


def test_the_forms_of_masks_hold_the_same_mask(client: TestClient, image_id: str) -> None:
    def ask(kind: str) -> dict[str, Any]:
        asked = {"boxes": [[30, 20, 70, 50]], "format": kind}
        answer = client.post(f"/v1/images/{image_id}/masks", json=asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert found["size"] == [96, 128] and found["format"] == kind
        (mask,) = found["masks"]
        return dict(mask)

    rle = decode(ask("rle")["counts"], (96, 128))
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(ask("png")["data"]))))
    bits = np.frombuffer(base64.b64decode(ask("bits")["data"]), np.uint8)
    assert np.array_equal(png, 255 * rle.astype(np.uint8))
    assert np.array_equal(np.unpackbits(bits)[: 96 * 128].reshape(96, 128).astype(bool), rle)
    assert ask("rle")["area"] == rle.sum()


def test_a_single_point_has_three_masks_or_the_best(client: TestClient, image_id: str) -> None:
    url = f"/v1/images/{image_id}/masks"
    three = client.post(url, json={"points": [[50, 35]]}).json()["masks"]
    best = client.post(url, json={"points": [[50, 35]], "best": True}).json()["masks"]
    assert len(three) == 3
    assert best == [max(three, key=lambda mask: mask["score"])]
    one = client.post(url, json={"points": [[50, 35]], "multimask": False}).json()["masks"]
    assert len(one) == 1
    labelled = {"points": [[50, 35], [3, 3]], "labels": [1, 0]}
    assert len(client.post(url, json=labelled).json()["masks"]) == 1


def test_an_earlier_mask_is_refined(client: TestClient, image_id: str) -> None:
    url = f"/v1/images/{image_id}/masks"
    asked: dict[str, Any] = {"points": [[50, 35]], "best": True, "logits": True}
    (first,) = client.post(url, json=asked).json()["masks"]
    asked |= {"mask_input": first["logits"], "multimask": False}
    (second,) = client.post(url, json=asked).json()["masks"]
    assert second["score"] != first["score"]


def test_everything_is_what_the_predictor_finds(
    client: TestClient, image_id: str, tiny_bundle: Bundle, tiny_photo: Path
) -> None:
    loose = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 4}
    answer = client.post(f"/v1/images/{image_id}/everything", json=loose)
    assert answer.status_code == 200, answer.text
    with tiny_bundle.predictor("onnxruntime", threads=1) as predictor:
        expected = predictor.everything(read_image(tiny_photo), **loose)
    found = answer.json()["masks"]
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(decode(ours["counts"], (96, 128)), theirs["segmentation"])
        assert (ours["area"], ours["bbox"]) == (theirs["area"], theirs["bbox"])
    error_of(client.post(f"/v1/images/{image_id}/everything", json={"points_per_side": 0}), 422)
    error_of(client.post(f"/v1/images/{'0' * 32}/everything", json={}), 404)


def test_everything_of_a_photo_that_leaves_meanwhile(
    tiny_bundle: Bundle, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tiny_bundle, "onnxruntime", threads=1)
    work = service.everything

    def forgetful(image_id: str, **settings: Any) -> Any:
        found = work(image_id, **settings)
        found.result(60)
        service.remove(image_id)
        return found

    monkeypatch.setattr(service, "everything", forgetful)
    with TestClient(make_app(service)) as client:
        image_id = client.post("/v1/images", content=photo).json()["id"]
        answer = client.post(f"/v1/images/{image_id}/everything", json={"points_per_side": 1})
    assert answer.status_code == 200 and answer.json()["size"] == [96, 128]


def test_the_embedding_travels_as_fp16(client: TestClient, image_id: str) -> None:
    answer = client.get(f"/v1/images/{image_id}/embedding")
    shape = [int(side) for side in answer.headers["x-shape"].split(",")]
    found = np.frombuffer(answer.content, "<f2").reshape(shape)
    assert found.shape == (1, 256, 16, 16) and np.isfinite(found).all() and found.std() > 0.1


def test_a_photo_is_forgotten(client: TestClient, photo: bytes) -> None:
    image_id = client.post("/v1/images", content=photo + b"\0").json()["id"]
    assert client.delete(f"/v1/images/{image_id}").status_code == 204
    assert "Send the photo again" in error_of(client.delete(f"/v1/images/{image_id}"), 404)
    asked = {"boxes": [[1, 1, 9, 9]]}
    error_of(client.post(f"/v1/images/{image_id}/masks", json=asked), 404)
    error_of(client.get(f"/v1/images/{image_id}/embedding"), 404)


def test_a_photo_that_had_to_make_room_is_to_be_sent_again(
    tiny_bundle: Bundle, photo: bytes
) -> None:
    with client_of(tiny_bundle, cache_mb=1) as client:  # four embeddings
        ids = [
            client.post("/v1/images", content=photo + bytes([number])).json()["id"]
            for number in range(5)
        ]
        first, last = (f"/v1/images/{image_id}" for image_id in (ids[0], ids[-1]))
        asked = {"boxes": [[1, 1, 9, 9]]}
        for answer in (
            client.post(f"{first}/masks", json=asked),
            client.post(f"{first}/everything", json={}),
            client.get(f"{first}/embedding"),
            client.delete(first),
        ):
            assert "had to make room for others. Send the photo again" in error_of(answer, 404)
        assert client.post(f"{last}/masks", json=asked).status_code == 200
        again = client.post("/v1/images", content=photo + bytes([0])).json()
        assert again["id"] == ids[0] and not again["cached"]
        assert client.post(f"{first}/masks", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "no prompt: give `points`"),
        ({"points": [[1]]}, r"points\.0"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "2 labels for 1 points"),
        ({"points": [[1, 2]], "labels": [2]}, r"labels\.0"),
        ({"boxes": [[0, 0, 500, 9]]}, "outside the image of 128 x 96"),
        ({"boxes": [[9, 9, 1, 1]]}, "empty or inverted"),
        ({"boxes": [[1, 1, 2, 2]] * 9}, "more than 8 points or boxes"),
        ({"points": [[1, 2]] * 8, "boxes": [[1, 1, 2, 2]] * 2}, "8 points with 2 boxes"),
        ({"points": [[1, 2]], "mask_input": "###"}, "no base64"),
        ({"points": [[1, 2]], "mask_input": "AAAA"}, "3 bytes, and 8192 are expected"),
        ({"points": [[1, 2]], "multimasks": True}, "multimasks"),
        ({"points": [[1, 2]], "format": "gif"}, "format"),
    ],
)
def test_masks_that_cannot_be(
    client: TestClient, image_id: str, asked: dict[str, Any], message: str
) -> None:
    import re

    answer = client.post(f"/v1/images/{image_id}/masks", json=asked)
    assert re.search(message, error_of(answer, 422))


def test_bodies_that_are_no_json_or_no_number(client: TestClient, image_id: str) -> None:
    url = f"/v1/images/{image_id}/masks"

    def send(body: bytes, status: int) -> str:
        told = {"Content-Type": "application/json"}
        return error_of(client.post(url, content=body, headers=told), status)

    broken = send(b'{"points": [[1, 2]], "labels" [1]}', 422)
    assert broken == "the body: no JSON (Expecting ':' delimiter at 30). See /docs"
    assert "finite" in send(b'{"points": [[NaN, 1]]}', 422)
    assert "finite" in send(b'{"points": [[1e999, 1]]}', 422)
    for body in (b'{"format": "\xff"}', b"[" * 200_000):
        assert "cannot be read" in send(body, 400)
    error_of(client.post("/v1/images/XYZ/masks", json={}), 422)


def test_paths_and_methods_that_are_not_there(client: TestClient) -> None:
    assert error_of(client.get("/nowhere"), 404) == "there is no /nowhere here. See /docs"
    wrong = client.put("/healthz")
    assert error_of(wrong, 405) == "/healthz takes no PUT. See /docs"
    assert wrong.headers["allow"] == "GET"


def test_a_mistake_of_the_server_has_the_form_of_all_errors(
    client: TestClient, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "image", None)
    answer = client.get(f"/v1/images/{image_id}/embedding")
    assert "its log says which" in error_of(answer, 500)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "empty"), (b"GIF89a nothing", "not an image|damaged")]
)
def test_what_is_no_photo(client: TestClient, data: bytes, message: str) -> None:
    import re

    assert re.search(message, error_of(client.post("/v1/images", content=data), 422))


def test_a_photo_of_too_many_pixels_or_bytes(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 300)).save(buffer, "PNG")
    assert "the limit is 0.2 Mpx" in error_of(
        client.post("/v1/images", content=buffer.getvalue()), 422
    )
    large = b"x" * ((1 << 20) + 1)
    assert "more than 1 MiB" in error_of(client.post("/v1/images", content=large), 413)
    pieces = iter([b"x" * 65536] * 17)  # chunked: no length is announced
    error_of(client.post("/v1/images", content=pieces), 413)
    error_of(client.post("/v1/images", files={"image": ("x.png", large, "image/png")}), 413)


def test_a_body_of_any_route_is_bounded(client: TestClient, image_id: str) -> None:
    url, told = f"/v1/images/{image_id}/masks", {"Content-Type": "application/json"}
    large = b'{"points": [' + b"[1,1]," * 400_000 + b"[1,1]]}"
    for body in (large, iter([large])):  # the second: in chunks, no length is announced
        answer = client.post(url, content=body, headers=told)
        assert "more than 2 MiB. Send fewer prompts a request" in error_of(answer, 413)


def test_an_answer_is_bounded_before_it_is_worked_for(
    client: TestClient, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, box = f"/v1/images/{image_id}/masks", [[30, 20, 70, 50]]
    assert client.post(url, json={"boxes": box * 6}).status_code == 200
    three = {"boxes": box * 2, "multimask": True, "best": True}
    assert client.post(url, json=three).status_code == 200
    assert client.post(url, json={"boxes": box, "logits": True}).status_code == 200
    monkeypatch.setattr(Service, "masks", None)
    for asked, message in (
        ({"boxes": box * 7}, "7 masks of this photo are 0.1 Mpx together, and the limit is 0.08"),
        ({"boxes": box * 3, "multimask": True, "best": True}, "three masks of each of 3 boxes"),
        ({"boxes": box * 2, "logits": True}, "2 masks of this photo with logits are 0.2 Mpx"),
    ):
        assert message in error_of(client.post(url, json=asked), 422)


def test_lists_are_bounded_where_they_are_read(client: TestClient, image_id: str) -> None:
    url = f"/v1/images/{image_id}/masks"
    for name, item in (("points", [1, 1]), ("labels", 1), ("boxes", [1, 1, 2, 2])):
        told = error_of(client.post(url, json={name: [item] * 10_001}), 422)
        assert told.startswith(f"{name}: ") and "10000 items" in told
    with pytest.raises(UserError, match="max_prompts 10001 is out of range. Use 10000 or fewer"):
        ServeSettings(max_prompts=10_001)


def test_forms_without_a_photo(client: TestClient, photo: bytes) -> None:
    wrong = client.post("/v1/images", files={"photo": ("x.png", photo, "image/png")})
    assert "no file in the field 'image'" in error_of(wrong, 400)
    text = client.post("/v1/images", files={"image": (None, "text")})
    error_of(text, 400)
    broken = {"content-type": "multipart/form-data"}  # no boundary
    error_of(client.post("/v1/images", content=b"--x", headers=broken), 400)


def test_what_prometheus_reads(client: TestClient, image_id: str) -> None:
    client.get("/nowhere")
    client.post(f"/v1/images/{image_id}/masks", json={"points": [[50, 35]]})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'structsam_requests_total{method="POST",route="/v1/images/{image_id}/masks",status="200"}',
        'structsam_requests_total{method="none",route="none",status="404"}',
        'structsam_cache_lookups_total{found="miss"}',
        'structsam_queue{worker="encoder"} 0.0',
        "structsam_cache_bytes",
        "structsam_decode_seconds_count",
        *(["process_resident_memory_bytes"] if sys.platform == "linux" else []),
    ):
        assert line in answer.text


def test_with_a_token_only_who_bears_it_comes_in(tiny_bundle: Bundle, photo: bytes) -> None:
    with client_of(tiny_bundle, token="secret") as client:
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/images", content=photo)
        assert "send `Authorization: Bearer TOKEN`" in error_of(refused, 401)
        assert refused.headers["www-authenticate"] == "Bearer"
        wrong = {"Authorization": "Bearer sécret".encode()}
        error_of(client.post("/v1/images", content=photo, headers=wrong), 401)
        right = {"Authorization": "Bearer secret"}
        assert client.post("/v1/images", content=photo, headers=right).status_code == 200


def test_while_many_wait_health_is_told_and_the_next_is_sent_away(
    tiny_bundle: Bundle, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wait than the server has threads (40), so none of them may wait in one."""
    began, go = threading.Event(), threading.Event()
    decode = Service._decode

    def held(service: Service, works: Any) -> Any:
        if works[0][2] is False:  # not the warming
            began.set()
            assert go.wait(60)
        return decode(service, works)

    monkeypatch.setattr(Service, "_decode", held)
    with client_of(tiny_bundle, queue=15) as client, ThreadPoolExecutor(70) as pool:
        try:
            image_id = client.post("/v1/images", content=photo).json()["id"]
            url, asked = f"/v1/images/{image_id}/masks", {"boxes": [[30, 20, 70, 50]]}
            answers = [pool.submit(client.post, url, json=asked)]
            assert began.wait(60)
            answers += [pool.submit(client.post, url, json=asked) for _ in range(61)]
            first = next(
                as_completed(answers, timeout=60)
            ).result()  # 60 wait: that is one too many
            assert "60 prompts are waiting already" in error_of(first, 429)
            assert int(first.headers["retry-after"]) >= 1
            for path in ("/healthz", "/readyz", "/metrics"):
                assert pool.submit(client.get, path).result(60).status_code == 200
        finally:
            go.set()
        assert sorted(each.result().status_code for each in answers) == [200] * 61 + [429]


def test_answers_that_wait_to_be_drawn_are_bounded(
    tiny_bundle: Bundle, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(tiny_bundle) as client:
        image_id = client.post("/v1/images", content=photo).json()["id"]
        monkeypatch.setattr(Drawing, "waiting", 64)
        for what in ("masks", "everything"):
            answer = client.post(f"/v1/images/{image_id}/{what}", json={})
            assert "64 answers are waiting" in error_of(answer, 429)


def test_another_host_name_is_refused(client: TestClient) -> None:
    """A page elsewhere could have its name point here (DNS rebinding)."""
    for name in ("evil.example", "evil example", ""):
        refused = client.get("/healthz", headers={"host": name})
        assert "Ask for testserver" in error_of(refused, 400)


def test_it_says_when_it_is_ready_and_when_it_stops(tiny_bundle: Bundle) -> None:
    service = Service(tiny_bundle, "onnxruntime", threads=1)
    client = TestClient(make_app(service))  # not entered: nothing is warmed
    assert client.get("/healthz").json()["status"] == "starting"
    assert client.get("/readyz").status_code == 503
    service.warm()
    assert client.get("/readyz").json() == {
        "status": "ok", "bundle": tiny_bundle.name, "backend": "onnxruntime",
    }  # fmt: skip
    service.stop()
    assert client.get("/readyz").json()["status"] == "stopping"
    assert "is stopping" in error_of(client.post("/v1/images", content=b"x"), 503)


def test_one_who_cannot_be_warmed_says_why(tiny_bundle: Bundle) -> None:
    failures: list[Exception] = []
    service = Service(tiny_bundle, "onnxruntime", threads=1)

    def broken() -> None:
        raise RuntimeError("no engine")

    service.warm = broken  # type: ignore[method-assign]
    with TestClient(make_app(service, on_failure=failures.append)):
        pass
    assert [str(error) for error in failures] == ["no engine"]


def test_openapi_finds_no_5xx(client: TestClient, image_id: str) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="comes with the extra `dev`")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    answered = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            if "image_id" in (case.path_parameters or {}) and case.method != "DELETE":
                case.path_parameters["image_id"] = image_id
            # 128 points a side would take minutes
            if case.path.endswith("everything") and isinstance(case.body, dict):
                case.body["points_per_side"] = 2
            answer = case.call()
            answered.add((case.method, answer.status_code))
            assert answer.status_code < 500, answer.text

        ask()
    assert {("GET", 200), ("POST", 422), ("DELETE", 404)} <= answered
