#!/usr/bin/env python3
"""Which step of a merged encoder takes how much of its time, in ONNX Runtime on the CPU.

    python scripts/profile_steps.py --model vit_b --rate 0.5 --placement attention,block,stage

Exports each encoder (random weights, FP32) with the steps marked, runs it under ONNX Runtime's
profiler, and prints a Markdown table: planning (energy, ranks, indices), merge, unmerge, padding,
windows (cutting, which stock SAM does too), attention with its projections, MLP, rest.
Beside every measured share stands what `structsam/step_costs.py` predicts from this machine's rates
of a matrix product and of copying, measured right before.
Means of `--runs` calls after two; the profiler itself takes a few percent of a call.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from segment_anything.modeling.common import MLPBlock
from torch import nn

from structsam import MergeConfig
from structsam.apply import apply_merging
from structsam.config import parse_layers
from structsam.merging import block as merged_block
from structsam.merging.block import MergedBlock
from structsam.merging.block_plan import BlockMerging
from structsam.merging.geometry import UnpaddedSlots, WindowMaps
from structsam.models import model_spec
from structsam.models.load import build_sam
from structsam.plans.plan import MergePlan
from structsam_export.bench.roofline import step_times
from structsam_export.graph import exporter as onnx_graph
from structsam_export.graph.modules import EncoderModule
from structsam_export.machine import copy_rate, gemm_rate

_TRACE = "pkg.torch.onnx.stack_trace"
#: Step -> functions whose work it is. Planning and unmerging count whole; else the inner step.
_STEPS: dict[str, list[tuple[Any, str]]] = {
    "planning": [(MergedBlock, "_merging")],
    "merge": [(MergePlan, "merge"), (BlockMerging, "_merge")],
    "unmerge": [(BlockMerging, "_unmerge")],
    "leaving padding out": [(UnpaddedSlots, "take"), (UnpaddedSlots, "spread")],
    "windows": [(WindowMaps, "cut"), (WindowMaps, "put_back")],
    "attention": [(merged_block, "attend")],
    "MLP": [(MLPBlock, "forward")],
}
_REST = "rest"
#: What merging adds to an encoder.
_ADDED = ("planning", "merge", "unmerge", "leaving padding out")


def mark_steps() -> dict[str, str]:
    """Make the traces of an export tell the steps: file name in a trace -> step.

    The exporter only notes `forward` of modules, so every step becomes one, compiled as a file of
    the step's name.
    """
    step_of_file = {}
    for step, functions in _STEPS.items():
        file = f"step-{step}.py"
        step_of_file[file] = step
        code = compile("def forward(self, run, args): return run(*args)", file, "exec")
        scope: dict[str, Any] = {}
        exec(code, scope)
        module = type(step, (nn.Module,), {"forward": scope["forward"]})()
        for owner, name in functions:
            setattr(owner, name, _through(module, getattr(owner, name)))
    return step_of_file


def _through(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return module(function, args)

    return run


def export_with_steps(
    model: str, config: MergeConfig, folder: Path, step_of_file: dict[str, str]
) -> tuple[Path, dict[str, str]]:
    """Export an encoder and return its file, and the step of every node's name."""
    step_of_node: dict[str, str] = {}
    save = onnx_graph._save

    def note_and_save(graph: Any, file: Path) -> None:
        for node in graph.graph:
            files = re.findall(r'File "([^"]+)"', node.metadata_props.get(_TRACE, ""))
            inner = [step_of_file[name] for name in files if name in step_of_file]
            whole = [step for step in inner if step in ("planning", "unmerge")]
            step_of_node[node.name] = (whole or inner[::-1] or [_REST])[0]
        save(graph, file)

    onnx_graph._save = note_and_save
    try:
        encoder = build_sam(model_spec(model)).image_encoder
        encoder = apply_merging(encoder, config)
        onnx_graph.export_encoder(EncoderModule(encoder, "fp32"), folder, "encoder.onnx")
    finally:
        onnx_graph._save = save
    return folder / "encoder.onnx", step_of_node


def profile(file: Path, threads: int, runs: int) -> list[tuple[str, float]]:
    """Return (node name, milliseconds of a call) for every kernel that ran."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(file.with_suffix(""))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    values = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
    for _ in range(2 + runs):
        session.run(None, {image.name: values})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    suffix = "_kernel_time"
    kernels = [event for event in events if event["name"].endswith(suffix)]
    measured = kernels[len(kernels) // (2 + runs) * 2 :]
    return [(event["name"][: -len(suffix)], event["dur"] / 1000 / runs) for event in measured]


def step_of(name: str, step_of_node: dict[str, str]) -> str:
    """Find the step of a kernel; ONNX Runtime appends to the names of the nodes that it fuses."""
    while name not in step_of_node and "/" in name:
        name = name.rsplit("/", 1)[0]
    name = name if name in step_of_node else re.sub(r"(_token_\d+|_nchwc|_\d+)$", "", name)
    return step_of_node.get(name, "made by ONNX Runtime")


def predict(model: str, config: MergeConfig, threads: int) -> Counter[str]:
    """Return the least seconds of every step, from what this machine reaches now."""
    peak, bandwidth = gemm_rate(threads), copy_rate(threads)
    assert peak and bandwidth, "numpy could not be measured"
    told = f"{peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s"
    print(f"a matrix product and a copy reach {told}", file=sys.stderr, flush=True)
    spec = model_spec(model)
    return Counter(step_times(spec, config, peak, bandwidth, size=4, fused=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--method", default="structsam")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--placement", default="attention", help="several: attention,block,stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    step_of_file = mark_steps()
    columns: dict[str, Counter[str]] = {}
    predicted: dict[str, Counter[str]] = {}
    for placement in args.placement.split(","):
        config = MergeConfig(args.method, args.rate, parse_layers(args.layers), placement=placement)
        with tempfile.TemporaryDirectory() as folder:
            print(f"{placement}: exporting, then running ...", file=sys.stderr, flush=True)
            file, steps = export_with_steps(args.model, config, Path(folder), step_of_file)
            predicted[placement] = predict(args.model, config, args.threads)
            times: Counter[str] = Counter()
            for name, milliseconds in profile(file, args.threads, args.runs):
                times[step_of(name, steps)] += milliseconds
            columns[placement] = times
    print(f"| step | {' | '.join(f'{name}: measured | predicted' for name in columns)} |")
    print(f"|---|{'---|' * 2 * len(columns)}")
    order = [*_STEPS, _REST]
    order += sorted({step for times in columns.values() for step in times} - set(order))
    for step in (*order, "what merging adds"):
        steps = _ADDED if step == "what merging adds" else (step,)
        cells = []
        for placement, times in columns.items():
            value = sum(times[each] for each in steps)
            cells.append(f"{value:.0f} ms, {100 * value / times.total():.1f} %")
            expected = sum(predicted[placement][each] for each in steps)
            cells.append(f"{100 * expected / predicted[placement].total():.1f} %")
        print(f"| {step} | {' | '.join(cells)} |")
    totals = [(times.total(), 1e3 * predicted[name].total()) for name, times in columns.items()]
    print(f"| all | {' | '.join(f'{ms:.0f} ms | {least:.0f} ms' for ms, least in totals)} |")


if __name__ == "__main__":
    main()
