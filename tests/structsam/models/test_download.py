"""`download` against a local server that behaves, stalls, breaks off, lies and refuses."""

from __future__ import annotations

import errno
import hashlib
import http.server
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from structsam.errors import UserError
from structsam.models.download import download

DATA = random.Random(0).randbytes(3_000_000)
MD5 = hashlib.md5(DATA).hexdigest()
FILE = "sam_vit_b_01ec64.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; the attributes say how it misbehaves, `ranges` records what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.status = 200
        self.honours_range = True
        self.wrong_range_start = False
        self.sends_length = True
        self.stop_after: int | None = None  # bytes, then the connection is closed
        self.stall = 0.0  # seconds of silence at `stop_after`
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mirror/{FILE}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.honours_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(server.data):
                self.send_error(416)
                return
            if server.wrong_range_start:
                start = 0
            self.send_response(206)
            last = len(server.data) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.data)}")
        else:
            self.send_response(200)
        if server.sends_length:
            self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        if server.stop_after is None:
            self.wfile.write(server.data[start:])
            return
        self.wfile.write(server.data[start : start + server.stop_after])
        self.wfile.flush()
        time.sleep(server.stall)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server: Server, directory: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"url": server.url, "md5": MD5, "size": len(DATA), "timeout": 5}
    return download("vit_b", directory, **{**arguments, **changes})


def refusal(server: Server, directory: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        fetch(server, directory, **changes)
    assert not (directory / FILE).exists(), "a file that is not valid got the final name"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def part_of(directory: Path, content: bytes) -> Path:
    part = directory / (FILE + ".part")
    part.write_bytes(content)
    return part


def test_whole_file_arrives_with_progress_and_no_leftovers(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = fetch(server, folder, progress=lambda done, total: seen.append((done, total)))
    assert path == folder / FILE
    assert path.read_bytes() == DATA
    assert [p.name for p in folder.iterdir()] == [FILE]
    assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert server.ranges == [None]


def test_valid_file_is_returned_without_asking_the_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(DATA)
    assert fetch(server, tmp_path) == tmp_path / FILE
    assert server.ranges == []


@pytest.mark.parametrize("content", [DATA[:-1], DATA[:-1] + bytes([DATA[-1] ^ 1])])
def test_wrong_file_in_the_way_is_never_overwritten(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"exists but has .* expected .*delete it"):
        fetch(server, tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_interrupted_download_resumes_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.stop_after = 1_000_000
    message = refusal(server, tmp_path)
    assert "stopped after 1,000,000 of 3,000,000 bytes" in message
    assert "run the same command again" in message
    server.stop_after = None
    seen: list[int] = []
    fetch(server, tmp_path, progress=lambda done, total: seen.append(done))
    assert server.ranges == [None, "bytes=1000000-"]
    assert seen[0] == 1_000_000
    assert (tmp_path / FILE).read_bytes() == DATA


def test_stalled_server_ends_in_a_timeout_that_can_be_resumed(
    server: Server, tmp_path: Path
) -> None:
    server.stop_after, server.stall = 500_000, 1.5
    message = refusal(server, tmp_path, timeout=0.2)
    assert "stopped after 500,000 of 3,000,000 bytes (timed out)" in message
    server.stop_after = None
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_server_without_range_restarts_cleanly(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path, DATA[:1_000_000])
    server.honours_range = False
    seen: list[int] = []
    fetch(server, tmp_path, progress=lambda done, total: seen.append(done))
    assert (tmp_path / FILE).read_bytes() == DATA
    assert seen[0] == 0


def test_server_that_answers_another_range_restarts_cleanly(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path, DATA[:1_000_000])
    server.wrong_range_start = True
    seen: list[int] = []
    path = fetch(server, tmp_path, progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == DATA
    assert seen[0] == 0 and seen[-1] == len(DATA) and seen == sorted(seen)
    assert server.ranges == ["bytes=1000000-", None]


def test_part_of_another_file_is_replaced(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path, b"x" * 1_000_000)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=1000000-", None]


@pytest.mark.parametrize("content", [DATA + b"more", b"x" * len(DATA)])
def test_part_too_long_or_complete_but_wrong_is_replaced(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    part_of(tmp_path, content)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None]


def test_complete_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path, DATA)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == []
    assert not (tmp_path / (FILE + ".part")).exists()


def test_part_beyond_the_end_is_replaced_when_the_size_is_unknown(
    server: Server, tmp_path: Path
) -> None:
    part_of(tmp_path, DATA + b"more")
    assert fetch(server, tmp_path, size=None).read_bytes() == DATA
    assert server.ranges == ["bytes=3000004-", None]


def test_server_without_content_length(server: Server, tmp_path: Path) -> None:
    server.sends_length = False
    totals: set[int | None] = set()
    fetch(server, tmp_path, size=None, progress=lambda done, total: totals.add(total))
    assert totals == {None}


def test_wrong_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    server.data = b"x" * len(DATA)
    found = hashlib.md5(server.data).hexdigest()
    message = refusal(server, tmp_path)
    assert f"has MD5 {found}, expected {MD5}" in message
    assert list(tmp_path.iterdir()) == []


def test_another_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    server.data = b"<html>sign in</html>"
    assert "offers 20 bytes, expected 3,000,000" in refusal(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_mirror_must_deliver_the_official_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="offers 3,000,000 bytes, expected 375,042,383"):
        download("vit_b", tmp_path, url=server.url)


@pytest.mark.parametrize("status", [404, 403, 500, 416])
def test_http_errors(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    message = refusal(server, tmp_path)
    assert str(status) in message and server.url in message


def test_http_error_keeps_what_was_fetched(server: Server, tmp_path: Path) -> None:
    part = part_of(tmp_path, DATA[:1000])
    server.status = 503
    refusal(server, tmp_path)
    assert part.read_bytes() == DATA[:1000]


def test_connection_refused(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{FILE}"
        assert "Cannot reach" in refusal(server, tmp_path, url=url)


def test_server_that_hangs_up_before_answering(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{FILE}"
        assert "Cannot reach" in refusal(server, tmp_path, url=url)
        thread.join(5)


def test_full_disk_is_noticed_before_the_server_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**7, 0, 1_999_999))
    assert "1,999,999 bytes free, expected at least 3,000,000" in refusal(server, tmp_path)
    assert server.ranges == []
    part_of(tmp_path, DATA[:1_500_000])  # only the rest has to fit
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_disk_that_fills_up_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(done: int, total: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert "is full" in refusal(server, tmp_path, progress=full)


def test_folder_that_is_a_file_or_holds_a_folder_of_that_name(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="as download folder"):
        fetch(server, tmp_path / "file")
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match="is a folder"):
        fetch(server, tmp_path)


def test_urls_other_than_http_are_refused(server: Server, tmp_path: Path) -> None:
    assert "expected one that starts with http" in refusal(
        server, tmp_path, url="file:///etc/fstab"
    )
    for url in ("http://[::1/sam.pth", "http://127.0.0.1:9/sämi.pth"):
        assert "is no URL" in refusal(server, tmp_path, url=url)


@pytest.mark.parametrize(
    ("model", "way_out"), [("medsam", "bowang-lab/MedSAM.*"), ("vit_t", "come with the package.*")]
)
def test_models_without_an_official_file_say_where_to_look(
    tmp_path: Path, model: str, way_out: str
) -> None:
    with pytest.raises(UserError, match=rf"{way_out}`checkpoint=`"):
        download(model, tmp_path)


def test_unknown_model_lists_the_valid_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vit_t, vit_b"):
        download("vit_x", tmp_path)


def test_downloading_imports_no_torch(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys; from structsam.models.download import download\n"
        f"download('vit_b', {str(tmp_path)!r}, {server.url!r}, md5={MD5!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
