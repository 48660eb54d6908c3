"""Load one runtime, and let it compute a known answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from structsam_export.bundle.folder import Bundle
from structsam_export.doctor.reason import reason_of
from structsam_export.doctor.tiny_bundle import FEEDS, in_torch, tiny_bundle, wrong
from structsam_export.engines.build import build
from structsam_export.engines.targets import backend_facts, choose_targets
from structsam_export.runtimes import BACKENDS, Backend, RunOptions
from structsam_export.runtimes.base import Arrays
from structsam_export.runtimes.torch_compile_backend import TorchCompileBackend


def try_runtime(name: str) -> dict[str, Any]:
    """Load a backend, build with it where it can, and run the tiny graph where it can.

    Returns:
        JSON-ready: `works`, and the `reason` why not; `title`; `builds_here`, and what became of a
        `build`; `self_test`: `passed`, `failed` or `not run`; `run_ms` of one run, and `runtime`,
        what the runner says about itself; `seconds` that all of it took.
    """
    began = time.perf_counter()
    facts = backend_facts(name)
    reason = facts.pop("unavailable")
    facts["self_test"] = "not run"
    with tiny_bundle() as bundle:
        if facts["builds_here"]:
            try:
                facts["build"] = _build(name, bundle)
            except Exception as error:
                facts["build"] = f"failed: {reason_of(error)}"
                reason = reason or f"it built no engine: {reason_of(error)}"
        if reason is None:
            try:
                reason = _self_test(BACKENDS[name], bundle, facts)
            except Exception as error:
                reason = reason_of(error)
            facts["self_test"] = "failed" if reason else "passed"
    seconds = round(time.perf_counter() - began, 2)
    return {"works": reason is None, "reason": reason, **facts, "seconds": seconds}


def _build(name: str, bundle: Bundle) -> str:
    """Build for this machine's GPU; without one, for a kind of GPU that it may be copied to."""
    target = choose_targets(name, (), bundle.precision)[0][0]
    build(bundle, name, [target], parts=["encoder"])
    return f"built for {target}"


def _self_test(backend: Backend, bundle: Bundle, facts: dict[str, Any]) -> str | None:
    """Say what is wrong with the answer, or None; put into `facts` how it was found."""
    if backend.needs_weights:
        network, facts["runtime"] = in_torch(isinstance(backend, TorchCompileBackend))
        return _judge(network, facts)
    with backend.runner(bundle, "encoder", RunOptions()) as runner:
        verdict = _judge(runner.run, facts)
        facts["runtime"] = runner.describe()
    return verdict


def _judge(network: Callable[[Arrays], Arrays], facts: dict[str, Any]) -> str | None:
    network(FEEDS)  # the first run loads, compiles and captures
    began = time.perf_counter()
    found = network(FEEDS)
    facts["run_ms"] = round((time.perf_counter() - began) * 1e3, 3)
    return wrong(found)
