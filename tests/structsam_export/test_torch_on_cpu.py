"""PyTorch's CPU settings reach all of its threads; checked in a fresh process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytest.importorskip("torch")

CODE = """
import sys, torch
from structsam_export.torch_on_cpu import use_fast_settings
if sys.argv[1] == "fast":
    use_fast_settings()
torch.set_num_threads(2)
tiny = torch.full((1 << 22,), 1e-30)
print(int((tiny * 1e-10 != 0).sum()))
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64", "aarch64"), reason="other arithmetic"
)
@pytest.mark.parametrize(("mode", "expected"), [("fast", 0), ("plain", 1 << 22)])
def test_denormal_numbers_are_flushed_in_every_thread(mode: str, expected: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected
