"""How fast each kernel was when TensorRT tried it: kept, so that the next build tries fewer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import ENGINE_FOLDER


def timing_cache_file(bundle: Bundle, version: str, gpu: str) -> Path:
    """Return where a bundle keeps the timings of one TensorRT on one GPU."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{version}.{gpu}").strip("-")
    return bundle.path / ENGINE_FOLDER / f"timing.tensorrt-{name}.cache"


def load_timing_cache(config: Any, file: Path) -> None:
    """Give a builder config the timings of a file, or an empty cache where they do not fit."""
    data = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save_timing_cache(config: Any, file: Path) -> None:
    """Write the timings that a builder config has now, if TensorRT gives any."""
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is not None:  # None: nothing was timed, or TensorRT could not
        atomic.write_bytes(file, bytes(memoryview(data)))
