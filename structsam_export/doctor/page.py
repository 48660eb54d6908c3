"""What `examine` found, as lines to paste into a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Facts = dict[str, Any]


def page_lines(found: Facts) -> list[str]:
    """Return the page, one fact a line."""
    return [
        f"structsam-export doctor, {found['date']}",
        "versions",
        *_values(found["versions"]),
        "machine",
        *_values(found["machine"]),
        "GPU",
        *_gpu(found),
        *(["Jetson", *_values(found["jetson"])] if found["jetson"] else []),
        "runtimes",
        *(line for name, facts in found["runtimes"].items() for line in _runtime(name, facts)),
        f"works here: {', '.join(found['works']) or 'no runtime'}",
        *([f"auto takes {found['auto']}, or an engine of the bundle"] if found["auto"] else []),
    ]


def _values(facts: Facts) -> list[str]:
    return [f"  {name}: {_text(value)}" for name, value in facts.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            _text(each) if name == "problem" else f"{name} {_text(each)}"
            for name, each in value.items()
            if each is not None
        )
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _gpu(found: Facts) -> Iterator[str]:
    listed = found["nvidia_smi"]
    for gpu in listed.get("gpus", [listed]):
        yield f"  nvidia-smi: {_text(gpu)}"
    yield f"  CUDA: {_text(found['cuda'])}"


def _runtime(name: str, facts: Facts) -> Iterator[str]:
    yield f"  {name}: {'works' if facts['works'] else 'no: ' + facts['reason']}"
    test = f"self-test {facts['self_test']}"
    if facts.get("run_ms") is not None:
        test += f", {facts['run_ms']:.2f} ms a run"
    if facts.get("seconds") is not None:
        test += f", {facts['seconds']:.1f} s in all"
    yield f"    {test}"
    if facts.get("build"):
        yield f"    engine of the tiny graph: {facts['build']}"
    if facts.get("runtime"):
        yield f"    {_text(facts['runtime'])}"
