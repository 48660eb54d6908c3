"""What TensorRT-RTX compiled on this GPU, kept beside the engine for the next process."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle import atomic

RUNTIME_CACHE_SUFFIX = ".runtime-cache"

_log = logging.getLogger("structsam_export")


class RuntimeCache:
    """An `IRuntimeCache` and its file. Without one an engine runs too, and compiles again."""

    def __init__(self, config: Any, engine: Path) -> None:
        """Give the cache of `engine`'s file to `config`, an `IRuntimeConfig`."""
        self._file = engine.with_name(engine.name + RUNTIME_CACHE_SUFFIX)
        self._on_disk = b""
        self._cache: Any = config.create_runtime_cache()
        if self._cache is None:
            _log.debug("TensorRT-RTX gives no runtime cache; it compiles again next time")
            return
        self._load()
        if not config.set_runtime_cache(self._cache):
            _log.debug("TensorRT-RTX takes no runtime cache; it compiles again next time")
            self._cache = None

    def _load(self) -> None:
        try:
            data = self._file.read_bytes()
        except OSError:
            return
        if data and self._cache.deserialize(data):  # False: written on another GPU or driver
            self._on_disk = data

    def save(self) -> None:
        """Write what was compiled, if there is more than on disk. What fails is only logged."""
        memory = None if self._cache is None else self._cache.serialize()
        if memory is None:  # also what `serialize` returns when it cannot
            _log.debug("TensorRT-RTX has no runtime cache to keep for %s", self._file)
            return
        data = bytes(memoryview(memory))
        if data not in (b"", self._on_disk):
            self._on_disk = data
            with suppress(UserError):  # a read-only bundle works too: it compiles again next time
                atomic.write_bytes(self._file, data)
