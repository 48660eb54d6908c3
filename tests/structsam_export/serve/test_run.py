"""Starting and stopping for real, and what stands in the way of a start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.serve.app import make_app
from structsam_export.serve.run import host_names, is_local, serve
from structsam_export.serve.settings import ServeSettings


def test_a_port_in_use(tiny_bundle: Bundle) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"):
            serve(tiny_bundle, port=port)


def test_embeddings_that_are_not_there(tiny_bundle: Bundle, tmp_path: Path) -> None:
    settings = ServeSettings(embeddings=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder .*nowhere"):
        serve(tiny_bundle, port=0, settings=settings)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("0.0.0.0", 0, r"others can reach 0\.0\.0\.0: give a `token="),
        ("192.0.2.1", 0, "others can reach"),
        ("127.0.0.1", 70000, "port 70000 is out of range"),
    ],
)
def test_addresses_that_are_refused(
    tiny_bundle: Bundle, host: str, port: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        serve(tiny_bundle, host, port)


def test_an_address_that_is_not_this_machine(tiny_bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        serve(tiny_bundle, "192.0.2.1", 0, token="x")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x.y", False)],
)
def test_who_can_reach_it(host: str, local: bool) -> None:
    assert is_local(host) is local


@pytest.mark.parametrize(
    ("host", "address", "asked"),
    [
        ("127.0.0.2", "127.0.0.2", "127.0.0.2:8000"),
        ("localhost", "127.0.0.1", "localhost"),
        ("0:0:0:0:0:0:0:1", "::1", "[::1]:8000"),
    ],
)
def test_it_answers_to_the_address_that_it_was_told(
    service: Any, host: str, address: str, asked: str
) -> None:
    client = TestClient(make_app(service, hosts=host_names(host, address)))
    assert client.get("/healthz", headers={"host": asked}).status_code == 200
    for other in ("testserver", "127.0.0.3", "evil.example"):
        assert client.get("/healthz", headers={"host": other}).status_code == 400


def test_whom_others_reach_answers_to_any_name() -> None:
    assert host_names("0.0.0.0", "0.0.0.0") is None


def text_of(url: str) -> str:
    return str(urllib.request.urlopen(url, timeout=30).read().decode())


def refusal_of(url: str) -> tuple[int, str]:
    """Ask for everything, of 16384 points, and return why there is none."""
    asked = b'{"points_per_side": 128, "pred_iou_thresh": 0, "stability_score_thresh": 0}'
    request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=120)
    return refused.value.code, json.load(refused.value)["error"]


def test_it_serves_until_it_is_told_to_stop(
    tiny_bundle: Bundle, photo: bytes, tmp_path: Path
) -> None:
    log = (tmp_path / "log").open("w")
    command = ["serve", str(tiny_bundle.path), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "structsam_export.cli.main", *command],
        stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/readyz", timeout=10)
                break
            except urllib.error.HTTPError as error:
                assert error.code == 503 and time.monotonic() < deadline
                time.sleep(0.1)
        request = urllib.request.Request(f"{address}/v1/images", photo)
        told = json.load(urllib.request.urlopen(request, timeout=30))
        assert told["width"] == 128
        with ThreadPoolExecutor(2) as pool:  # one runs, one waits; both would take minutes
            url = f"{address}/v1/images/{told['id']}/everything"
            asked = [pool.submit(refusal_of, url) for _ in range(2)]
            while 'structsam_queue{worker="everything"} 1.0' not in text_of(f"{address}/metrics"):
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == -signal.SIGTERM  # as uvicorn ends
            for each in asked:
                assert each.result() == (503, "the server is stopping. Try again later")
        log_text = (tmp_path / "log").read_text()
        assert "Traceback" not in log_text and "error" not in log_text
    finally:
        process.kill()
        log.close()
