"""A real Triton server for tests, from the wheel of nvidia-pytriton, in an environment of its own.

That wheel carries `tritonserver` with the Python backend alone, so the networks run in stand-ins
with the same names and shapes. The environment (400 MB on disk, 110 MB to fetch, seconds with a
warm cache of uv) is made once and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

REQUIREMENTS = (
    "nvidia-pytriton==0.7.0",
    "tritonclient[grpc]==2.73.0",
    "onnxruntime>=1.20",
    "pillow>=10.1",
)
STAND_IN = Path(__file__).with_name("onnxruntime_stand_in.py")
CALLS = Path(__file__).with_name("client_calls.py")
_SECONDS_TO_INSTALL, _SECONDS_TO_START = 300, 60
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment() -> Path:
    """Return the environment's folder; skip the test where it cannot be made or cannot run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("nvidia-pytriton has wheels for Linux on x86-64 only")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "structsam"
    key = hashlib.sha256(repr((REQUIREMENTS, sys.executable, PYTHON)).encode()).hexdigest()[:12]
    folder = base / f"triton-{key}"
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder)
            (folder / "complete").touch()
    return folder


def _install(folder: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    steps = (
        [*uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", str(python_of(folder)), *REQUIREMENTS],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_SECONDS_TO_INSTALL)
        except subprocess.TimeoutExpired:
            pytest.skip(f"no environment for Triton: not installed in {_SECONDS_TO_INSTALL} s")
        if done.returncode:
            pytest.skip(f"no environment for Triton: {done.stderr.strip()[-400:]}")
    packages = _packages(folder)
    backends = folder / "backends"
    triton = packages / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no stub for Python {PYTHON}")
    shutil.copytree(triton / "backends", backends)
    shutil.copy2(stub, backends / "python")


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _packages(folder: Path) -> Path:
    return folder / "lib" / f"python{PYTHON}" / "site-packages"


def with_stand_ins(repository: Path, copy: Path) -> Path:
    """Copy a repository; its ONNX networks run in Python models of the same names and shapes."""
    shutil.copytree(repository, copy)
    for config in copy.glob("*/config.pbtxt"):
        text = config.read_text()
        if 'backend: "onnxruntime"' in text:
            lines = [line for line in text.splitlines() if "default_model_filename" not in line]
            text = "\n".join(lines).replace('backend: "onnxruntime"', 'backend: "python"')
            config.write_text(text.replace("KIND_AUTO", "KIND_CPU") + "\n")
            shutil.copy2(STAND_IN, config.parent / "1" / "model.py")
    return copy


class Server:
    """A running server; `address` is that of gRPC, `http` that of HTTP."""

    def __init__(self, folder: Path, address: str, http: str, log: Path) -> None:
        self._folder, self.address, self.http, self.log = folder, address, http, log

    def infer(
        self, calls: Sequence[tuple[str, Mapping[str, np.ndarray]]], at_once: bool = False
    ) -> list[Any]:
        """Send requests (model, inputs); return for each its outputs, or the error's text.

        Args:
            at_once: send all before the first answer.
        """
        done = subprocess.run(
            [python_of(self._folder), CALLS, self.address],
            input=pickle.dumps((list(calls), at_once)),
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode() + self.log.read_text()[-3000:]
        return list(pickle.loads(done.stdout))

    def inferences(self, model: str) -> int:
        """How many requests a model has answered, those before it was ready not counted."""
        return int(self._statistics(model)["inference_count"])

    def executions(self, model: str) -> int:
        """How often a model ran: once for a batch of requests."""
        return int(self._statistics(model)["execution_count"])

    def _statistics(self, model: str) -> dict[str, Any]:
        address = f"http://{self.http}/v2/models/{model}/stats"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return dict(json.load(answer)["model_stats"][0])

    def run_script(self, script: str, *arguments: str, cwd: Path) -> str:
        """Run a Python script in the environment; return what it prints."""
        command = [python_of(self._folder), "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def serving(folder: Path, repository: Path, log: Path) -> Iterator[Server]:
    """Serve a repository until the block ends; skip where the program itself does not start."""
    binary = _packages(folder) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    # of libpython, which the stub loads, and of the copied stub's other libraries
    libraries = [sysconfig.get_config_var("LIBDIR"), _packages(folder) / "nvidia_pytriton.libs"]
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        # the stub looks up `python3` there, and so finds the environment's packages
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    if subprocess.run([binary, "--help"], capture_output=True, env=variables).returncode not in (
        0,
        1,
    ):
        pytest.skip("the tritonserver of nvidia-pytriton does not start here")
    http, grpc = _free_ports(2)
    command = [
        binary,
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--allow-metrics=false", "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name=structsam-test-{os.getpid()}-{http}",
    ]  # fmt: skip
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=variables)
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Server(folder, f"127.0.0.1:{grpc}", f"127.0.0.1:{http}", log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
