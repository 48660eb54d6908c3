"""The load test's numbers; Locust itself is not needed for them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "locustfile.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    locust: Any = ModuleType("locust")
    locust.HttpUser, locust.between, locust.events = object, MagicMock(), MagicMock()
    locust.task = lambda weight: lambda method: method
    monkeypatch.setitem(sys.modules, "locust", locust)
    monkeypatch.setitem(sys.modules, "gevent", MagicMock())
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("count", [2, 47, 1000])
def test_percentiles_are_within_what_was_seen(script: dict[str, Any], count: int) -> None:
    times = [100.0 + number for number in range(count)]
    p50, p99 = script["percentiles"](times)
    assert p50 == (times[0] + times[-1]) / 2
    assert p50 < p99 <= times[-1]
