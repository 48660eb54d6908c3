"""Which engines an export is going to build, told before the work."""

from __future__ import annotations

from collections.abc import Sequence

from structsam.errors import UserError
from structsam_export.engines.targets import ALL_TARGETS, can_build, choose_targets
from structsam_export.graph.precisions import float_type
from structsam_export.runtimes import BACKENDS, BackendUnavailable, find_backend


def plan_engines(
    backend: str, targets: Sequence[str], precision: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Say before the work what will be built: backend -> targets; and what cannot be, and why.

    Args:
        backend: key of `BACKENDS`, or `auto` for every engine that can be built here.
        targets: GPU generations such as `sm89`, or `all`.
        precision: one of `PRECISIONS`.

    Raises:
        UserError: a backend that is asked for cannot run or build here, or takes no targets.
    """
    asked = backend != "auto"
    if asked and not find_backend(backend).needs_engine:
        if targets:
            raise UserError(
                f"`targets=` builds engines, and backend {backend!r} has none. "
                "Use `backend='tensorrt-rtx'`, or leave `backend=` out"
            )
        if reason_here := find_backend(backend).why_unavailable():
            raise UserError(f"backend {backend} cannot run here: {reason_here}")
        return {}, []
    plan: dict[str, list[str]] = {}
    notes = []
    names = [backend] if asked else [name for name, b in BACKENDS.items() if b.needs_engine]
    for name in names:
        own = targets if asked or name == "tensorrt-rtx" else ()
        try:
            if not (own or asked) and (reason := BACKENDS[name].why_unavailable()):
                raise BackendUnavailable(reason)
            plan[name] = choose_targets(name, own, precision)[0]
        except BackendUnavailable as reason:
            if asked or own:
                raise
            hint = (
                "; `targets=sm89` (or all) builds it here all the same" if can_build(name) else ""
            )
            notes.append(f"{name}: no engine: {reason}{hint}")
    if ALL_TARGETS in targets and float_type(precision) == "fp32":
        notes.append("tensorrt-rtx sm75: not built: Turing has no float32 matmul there; use fp16")
    return plan, notes
