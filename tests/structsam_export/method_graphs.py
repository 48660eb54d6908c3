"""Graphs of plans alone: what a method decides, in torch and in ONNX Runtime side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from segment_anything.modeling.image_encoder import window_partition
from torch import Tensor, nn

from structsam.methods import METHODS
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.graph import exporter as onnx_graph

#: SAM's global map, which windows of 14 pad to 70: 25 windows, 9 of them with padding.
SIDE = 64
#: Plans are compared on the whole map: on a smaller one a tie is too large a share.
PLAN_SIDE = SIDE
WINDOW = 14
TABLES = ("slot_of_token", "anchor_of_slot", "size_of_slot")


class Result(NamedTuple):
    """One plan as arrays."""

    slot_of_token: np.ndarray
    anchor_of_slot: np.ndarray
    size_of_slot: np.ndarray
    merged: np.ndarray


class Plans(nn.Module):
    """Plans of several methods for one map [1, S, S, C]: its windows, or the map as a whole.

    The tables leave as floats (exact below 2^24): no int64 at an output, as the rules want.
    """

    def __init__(self, methods: list[Any]) -> None:
        super().__init__()
        self.methods = methods

    def forward(self, image: Tensor, box: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        ones = torch.ones(1, *image.shape[1:3], 1)
        for method in self.methods:
            energy, tokens, padding = method.token_energy(image), image, None
            if method.grid == (WINDOW, WINDOW):
                tokens, _ = window_partition(tokens, WINDOW)
                padding = window_partition(ones, WINDOW)[0].flatten(1) == 0
                if energy is not None:
                    energy, _ = window_partition(energy.unsqueeze(-1), WINDOW)
            tokens = tokens.flatten(1, 2)
            energy = None if energy is None else energy.reshape(tokens.shape[:2])
            own_box = box.expand(tokens.shape[0], -1) if method.takes_box else None
            plan = method.plan(tokens, energy, padding, own_box)
            merged = plan.merge(tokens)
            found += [getattr(plan, table).float() for table in TABLES] + [merged]
            found.append(plan.unmerge(merged))
        return tuple(found)


def results_of(arrays: list[np.ndarray]) -> list[Result]:
    """Five arrays of every method."""
    results = []
    for first in range(0, len(arrays), 5):
        tables = [np.rint(table).astype(np.int64) for table in arrays[first : first + 3]]
        results.append(Result(*tables, arrays[first + 3]))
    return results


def export_plans(methods: list[Any], side: int, channels: int, file: Path) -> None:
    """Write the graph as the product writes an encoder."""
    shapes = {"image": (1, side, side, channels), "box": (1, 4)}
    inputs = tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items())
    part = Part(file.name, inputs, ())
    names = [f"{i}.{kind}" for i in range(len(methods)) for kind in (*TABLES, "merged", "back")]
    examples = tuple(torch.zeros(shape) for shape in shapes.values())
    model = onnx_graph._to_ir(Plans(methods), examples, part, names, None)
    onnx_graph._save(model, file)


def run_onnx(file: Path, image: Tensor, box: Tensor) -> list[np.ndarray]:
    """Run on the CPU with ONNX Runtime's own optimizations, as users do."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {"image": image.numpy(), "box": box.numpy()}
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {name: value for name, value in given.items() if name in wanted})


def run_torch(methods: list[Any], image: Tensor, box: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in Plans(methods)(image, box)]


def make(name: str, grid: tuple[int, int], cases: list[tuple[float, dict[str, Any]]]) -> list[Any]:
    return [METHODS[name](grid, rate, **options) for rate, options in cases]
