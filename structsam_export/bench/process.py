"""The benchmark's end of a row's process: start it, give it turns, and make sure that it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.last_words import last_words
from structsam_export.runtimes.base import RunOptions

_GRACE = 30  # seconds that a process gets to free its network


class RowNotRun(Exception):
    """The backend cannot run this bundle here; the message is the reason."""


class RowDied(Exception):
    """The row's process failed; the message is the last thing it said."""


class RowProcess:
    """A process that holds one opened network. Use as a context manager; leaving it ends it."""

    def __init__(self, bundle: Bundle, backend: str, part: PartName, options: RunOptions) -> None:
        self._request = {
            "bundle": str(bundle.path),
            "backend": backend,
            "part": part,
            "threads": options.threads,
            "checkpoint": str(options.checkpoint) if options.checkpoint else None,
            "target": options.target,
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in __exit__
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RowProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "structsam_export.bench.row", json.dumps(self._request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        return self

    def wait_until_ready(self) -> None:
        """Return when the network is open.

        Raises:
            RowNotRun: the backend cannot run this bundle here.
            RowDied: the process failed.
        """
        self._answer()

    def run(self) -> tuple[float, float | None]:
        """Run the network, and return ms of one call and on the GPU; raises as `wait_until_ready`.

        The second is None where the CPU computes.
        """
        self._say("run")
        answer = self._answer()
        return float(answer["ms"]), answer["device_ms"]

    def warm_up(self) -> dict[str, Any] | None:
        """Run until device times are steady; see `steady.warm_up`. Raises as `wait_until_ready`."""
        self._say("warm up")
        found: dict[str, Any] | None = self._answer()["warm_up"]
        return found

    def finish(self) -> tuple[dict[str, Any], float | None]:
        """Free the network; return facts about the runtime, and the peak memory in MiB."""
        self._say("end")
        answer = self._answer()
        return answer["runtime"], answer["peak_memory_mib"]

    def _say(self, command: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except OSError:
            raise RowDied(self._last_words()) from None

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RowDied(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "not_run" in answer:
            raise RowNotRun(answer["not_run"])
        if "failed" in answer:
            raise RowDied(answer["failed"])
        return answer

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        errors = self._errors.read().decode("utf-8", "replace")
        return last_words("the row's process", code, errors)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        try:
            if kind is None and process.stdin is not None:
                try:
                    process.stdin.close()
                    process.wait(_GRACE)
                except (OSError, subprocess.TimeoutExpired):
                    pass
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
            self._errors.close()
