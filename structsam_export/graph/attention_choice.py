"""Which form of attention `auto` is, for every runtime, and what decided it: one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from structsam_export.graph.precisions import float_type

if TYPE_CHECKING:
    from structsam.config import MergeConfig


@dataclass(frozen=True)
class AttentionChoice:
    """A form of attention, and why.

    Args:
        attention: as in `MergeConfig.attention`.
        reason: the measurement, or `assumed` and on what grounds.
    """

    attention: str
    reason: str


_READ = (
    "fused in engines of TensorRT for RTX 1.7.1 for every target, where folded is not; that it is "
    "the fastest of the fused forms is assumed: on paper dense is as fast, docs/expected.md"
)
_ELSEWHERE = AttentionChoice("folded", "assumed: the fewest multiply-adds")

#: By key of `BACKENDS` and precision; `_ELSEWHERE` for the others.
AUTO_ATTENTION = {
    ("onnxruntime", "fp32"): AttentionChoice(
        "folded", "measured on a CPU, 2026-11-26: the fastest of the five, docs/performance.md"
    ),
    ("tensorrt-rtx", "fp32"): AttentionChoice(
        "folded", "engines have fused kernels for FP16 only; the fewest multiply-adds"
    ),
    ("tensorrt-rtx", "fp16"): AttentionChoice("folded_padded", _READ),
    ("tensorrt", "fp32"): AttentionChoice("folded", "assumed, from TensorRT for RTX"),
    ("tensorrt", "fp16"): AttentionChoice("folded_padded", "assumed, from TensorRT for RTX"),
    ("torch", "fp32"): AttentionChoice("folded", "measured on a CPU, 2026-11-21"),
}

#: The same for encoders that merge nothing: keys are the whole grid, so no gather makes the mask.
UNMERGED_ATTENTION = {
    ("openvino", "fp32"): AttentionChoice(
        "dense", "measured without merging, 2026-11-27: 1.11 to 1.19 times as fast as folded"
    ),
}


def unmerged_forms(backends: Iterable[str], precision: str) -> list[str]:
    """Return the forms that were measured as the fastest on these runtimes without merging."""
    found = (UNMERGED_ATTENTION.get((backend, float_type(precision))) for backend in backends)
    return sorted({choice.attention for choice in found if choice})


def attention_for(
    config: MergeConfig, backend: str, precision: str
) -> tuple[MergeConfig, str | None]:
    """Return `config` with the form of attention that `auto` is for a runtime, and why.

    Args:
        backend: key of `BACKENDS`; of several, the one that matters most.
        precision: one of `PRECISIONS`; INT8 linear layers do not change the choice.

    Returns:
        `config` as it is, and None, where a form was asked for.
    """
    from structsam.merging.attention_forms import AUTO

    if config.attention != AUTO:
        return config, None
    runtime = backend, float_type(precision)
    choice = AUTO_ATTENTION.get(runtime, _ELSEWHERE)
    if not config.merges:
        choice = UNMERGED_ATTENTION.get(runtime, choice)
    return (
        replace(config, attention=choice.attention),
        f"attention {choice.attention} for {backend} ({choice.reason})",
    )
