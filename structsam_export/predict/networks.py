"""The networks of a bundle: opened on first use, kept until closed."""

from __future__ import annotations

from typing import Any

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PartName
from structsam_export.runtimes import Backend, Runner, RunOptions


class Networks:
    """Encoder and decoder of a bundle on one backend.

    Args:
        options: threads, weights and engine, for both alike.
    """

    def __init__(self, bundle: Bundle, backend: Backend, options: RunOptions) -> None:
        self._bundle, self._backend, self._options = bundle, backend, options
        self._runners: dict[PartName, Runner] = {}

    def opened(self, part: PartName) -> Runner:
        """Return a network, ready to run. Raises `UserError` as its backend does."""
        if part not in self._runners:
            runner = self._backend.runner(self._bundle, part, self._options)
            runner.open()
            self._runners[part] = runner
        return self._runners[part]

    def describe(self) -> dict[str, Any]:
        """Return what each opened network runs on, ready for JSON."""
        return {name: runner.describe() for name, runner in self._runners.items()}

    def close(self) -> None:
        """Free them. Safe to call twice; the next use opens them again."""
        while self._runners:
            self._runners.popitem()[1].close()
