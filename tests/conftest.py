"""Fixtures shared by all tests. The tiny SAM has real windows, padding and a global block."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from structsam.models import ModelSpec
from structsam.models.load import build_sam

# Two workers share two cores: threads would wait for each other. PyTorch reads it when it loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tracing makes millions of objects: looking for circles every 700 is an eighth of its time.
gc.set_threshold(100_000, 20, 20)

# The same examples in every run: a red build means a change, not luck.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: else one worker ends with them while the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def denormals_as_usual() -> Iterator[None]:
    """Commands flush them in their process; here only the main thread would, from then on."""
    _flush_no_denormals()  # a fixture of a whole file may have run a command
    yield
    _flush_no_denormals()


def _flush_no_denormals() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """For large exports: ONNX Runtime is enough there, and small ones are checked with both."""
    from structsam_export.runtimes import BACKENDS

    monkeypatch.setattr(BACKENDS["openvino"], "why_unavailable", lambda: "not in this test")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """A 16x16 grid that windows of 14 pad to 28x28, and a global block in the middle."""
    return ModelSpec(
        name="tiny",
        title="tiny SAM for tests",
        embed_dim=32,
        depth=3,
        num_heads=2,
        global_blocks=(1,),
        image_size=256,
    )


@pytest.fixture(scope="session")
def tiny_sam_factory(tiny_spec: ModelSpec) -> Callable[..., Any]:
    """`make(seed=0, **overrides)`: a tiny `Sam`; the overrides are fields of `ModelSpec`."""

    def make(seed: int = 0, **overrides: Any) -> Any:
        return build_sam(replace(tiny_spec, **overrides), seed)

    return make
