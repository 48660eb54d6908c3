"""What an engine runs: its kernels with the ONNX nodes of each, and whether attention is fused.

TensorRT for RTX keeps its program as text in the engine, so that this is known where the engine is
built, GPU or not. TensorRT's inspector tells the same, on the GPU. Neither text is documented: what
cannot be read is unknown, and no reason to fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from structsam_export.bundle.manifest import EngineEntry

_PROGRAM = re.compile(rb"\nmain \{(.*?)\n\}", re.DOTALL)
_LAUNCH = re.compile(rb'\n +(?!signal|wait)\w+=\{ name="?([^\s"]+).*?layers="(.*?)"', re.DOTALL)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
#: Names that fused attention has in engines: TensorRT's own kernels, and those that it generates.
_FUSED = re.compile(r"mha|flash|fused_attention|scaled_dot_product", re.IGNORECASE)
#: The node of every block that only attention has, as `graph.exporter` names it.
_OF_ATTENTION = re.compile(r"blocks\.(\d+)\.core/(?:Softmax|Attention)(?:_\d+)?$")


@dataclass(frozen=True)
class Kernel:
    """One launch of an engine: its name, and the ONNX nodes that it computes, also in part."""

    name: str
    nodes: tuple[str, ...]


def kernels_of_rtx(plan: bytes | memoryview) -> list[Kernel]:
    """Return the kernels of a TensorRT for RTX engine; empty when it does not tell them.

    Its longest program is the network; the others are how single fused kernels may be compiled.
    """
    program = max((match[1] for match in _PROGRAM.finditer(plan)), key=len, default=b"")
    found = []
    for match in _LAUNCH.finditer(program):
        name, layers = (text.decode("utf-8", "replace") for text in match.groups())
        found.append(Kernel(name, tuple(_NODE.findall(layers))))
    return found


def kernels_of_inspector(text: str) -> list[Kernel]:
    """Return the kernels that TensorRT's engine inspector tells as JSON.

    Empty when the engine was built without their names.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, TypeError, KeyError):
        return []
    if not isinstance(layers, list):
        return []
    return [
        Kernel(
            f"{layer.get('Name', '')} {layer.get('TacticName', '')}".strip(),
            tuple(_NODE.findall(str(layer.get("Metadata", "")))),
        )
        for layer in layers
        if isinstance(layer, dict)
    ]


def attention_of(kernels: Sequence[Kernel]) -> dict[str, list[int]]:
    """Sort the blocks into `fused` and `separate`: those whose M x M logits go through memory.

    Returns:
        both lists of block indices; empty when the kernels tell no block.
    """
    alone: dict[str, bool] = {}  # attention's nodes -> whether no fused kernel computes them
    for kernel in kernels:
        for node in filter(_OF_ATTENTION.search, kernel.nodes):
            alone[node] = alone.get(node, True) and not _FUSED.search(kernel.name)
    blocks: dict[int, bool] = {}
    for node, separate in alone.items():
        match = _OF_ATTENTION.search(node)
        assert match is not None
        blocks[int(match[1])] = blocks.get(int(match[1]), False) or separate
    if not blocks:
        return {}
    return {
        "fused": sorted(index for index, separate in blocks.items() if not separate),
        "separate": sorted(index for index, separate in blocks.items() if separate),
    }


def inspect(trt: Any, logger: Any, plan: memoryview) -> list[Kernel]:
    """Return the kernels of a TensorRT engine; it is loaded onto the GPU for that."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    return kernels_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def attention_note(entry: EngineEntry) -> str | None:
    """Say of how many blocks attention is fused; None when that is not known."""
    if not entry.attention:
        return None
    fused, separate = entry.attention["fused"], entry.attention["separate"]
    return f"attention fused in {len(fused)} of {len(fused) + len(separate)} blocks"


def attention_warning(entry: EngineEntry) -> str | None:
    """Say what to do where attention is not fused; None when it is, or that is not known."""
    separate = entry.attention.get("separate")
    if not separate:
        return None
    blocks = ", ".join(map(str, separate))
    return (
        f"{entry.file}: attention of block {blocks} is not fused, so its logits go through memory. "
        "Export with `attention=\"folded_padded\"` and `precision='fp16'`, which fuses"
    )
