#!/usr/bin/env python3
"""Measure every GPU row of docs/performance.md in one run of under eight minutes.

    python scripts/bench_gpu.py prepare FOLDER     # no GPU needed: exports, and engines where
                                                   # TensorRT for RTX builds them ahead of time
    python scripts/bench_gpu.py run FOLDER         # on the machine with the GPU

`prepare` takes about half an hour of two CPU cores and 20 GB, and resumes. `run` first checks the
masks of a trained bundle on every GPU backend (parity), then times groups of rows in the order of
their worth, and writes FOLDER/bench_gpu.json and bench_gpu.md after each; a group that no time is
left for is named as not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.merging.attention_forms import FORMS, KINDS
from structsam.models import model_spec
from structsam_export.bench.benchmark import Procedure, bench, make_baselines
from structsam_export.bench.encoders import make_merged, prepare
from structsam_export.bench.report import BenchReport, markdown
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.graph.attention_choice import attention_for
from structsam_export.parity.check import check
from structsam_export.runtimes import BACKENDS

_ENGINES = ("tensorrt-rtx", "tensorrt")
_GPU_BACKENDS = (*_ENGINES, "onnxruntime-cuda", "torch", "torch-compile")
_RATES = (0.25, 0.5, 0.7)
_PLACEMENTS = ("attention", "block", "stage")
_PARITY_BUNDLE = "vit_t-structsam-r0.50"


@dataclass(frozen=True)
class Group:
    """Rows that take turns: encoders of one model and batch on some backends.

    Args:
        configs: what merges; attention `auto` is that of the first backend.
        seconds: that it is expected to take; it is left out when less is left.
    """

    title: str
    model: str
    configs: tuple[MergeConfig, ...]
    backends: tuple[str, ...]
    batch: int = 1
    seconds: float = 60.0


_MIDDLE = tuple(MergeConfig(rate=0.5, placement=place) for place in _PLACEMENTS)
_SWEEP = tuple(replace(config, rate=rate) for config in _MIDDLE for rate in _RATES)
_BIPARTITE = tuple(MergeConfig(name, 0.5) for name in ("tome", "pitome", "tomesd"))
#: Every form in all blocks, then in one kind of blocks only.
_FORMS = tuple(
    MergeConfig(rate=0.5, attention=attention)
    for attention in (
        *FORMS,
        *(f"{kind}={form},{other}=folded_padded" for form in ("folded", "dense")
          for kind, other in (KINDS, KINDS[::-1])),
    )
)  # fmt: skip
#: In PyTorch this is scaled_dot_product_attention with SAM's bias, which merging has to beat.
_DENSE = (MergeConfig(rate=0.5, attention="dense"),)

#: The most wanted first; every row's form has its unmerged encoder beside it. Bipartite matching of
#: halves cannot remove more than 0.5.
GROUPS = (
    Group("ViT-B, engines", "vit_b", _SWEEP + _BIPARTITE, _ENGINES, seconds=80),
    Group("ViT-B, forms of attention", "vit_b", _FORMS, _ENGINES, seconds=90),
    Group("ViT-L, engines", "vit_l", _MIDDLE, _ENGINES, seconds=50),
    Group(
        "ViT-B, torch and ONNX Runtime", "vit_b", _DENSE + _MIDDLE, ("torch", "onnxruntime-cuda")
    ),
    Group("ViT-B, batch 8, engines", "vit_b", _MIDDLE, _ENGINES, batch=8, seconds=50),
    Group("ViT-B, torch.compile", "vit_b", _DENSE + _MIDDLE[::2], ("torch-compile",), seconds=120),
)


def prepared(group: Group, folder: Path) -> list[Bundle]:
    """Return the group's encoders, merged ones first; those that are missing are made."""
    configs = [attention_for(config, group.backends[0], "fp16")[0] for config in group.configs]
    spec = model_spec(group.model)
    bundles = list(make_merged(spec, configs, "fp16", group.batch, folder, say))
    baselines = make_baselines(bundles, group.backends, folder, say)
    return [*bundles, *(bundle for _, bundle in baselines)]


def prepare_all(folder: Path, groups: Sequence[Group], targets: Sequence[str]) -> None:
    """Export everything, and build what can be built here."""
    from structsam_export import export

    if not (folder / _PARITY_BUNDLE).is_dir():
        say("exporting the trained bundle for parity")
        export("vit_t", rate=0.5, out=folder, backend="onnxruntime", say=say)
    for group in groups:
        say(f"preparing {group.title}")
        for bundle in prepared(group, folder / "encoders"):
            if "tensorrt-rtx" in group.backends:
                prepare(bundle, "tensorrt-rtx", say, targets)


def run_all(folder: Path, groups: Sequence[Group], minutes: float) -> bool:
    """Check parity, time the groups, and save after each; True when nothing failed."""
    end = time.monotonic() + 60 * minutes
    parity, matches = _parity(folder)
    told = [parity]
    reports: dict[str, BenchReport] = {}
    _save(folder, told, reports)
    usable = [name for name in _GPU_BACKENDS if not BACKENDS[name].why_unavailable()]
    for group in groups:
        backends = tuple(name for name in group.backends if name in usable)
        left = end - time.monotonic()
        if not backends:
            reasons = [f"{n}: {BACKENDS[n].why_unavailable()}" for n in group.backends]
            told.append(f"## {group.title}\n\nNot run. {'; '.join(reasons)}\n")
        elif left < group.seconds:
            told.append(f"## {group.title}\n\nNot run: {left:.0f} s were left.\n")
        else:
            say(group.title)
            bundles = prepared(group, folder / "encoders")[: len(group.configs)]
            reports[group.title] = bench(
                bundles, backends, True, Procedure(runs=20, warmup=5), folder / "encoders", say
            )
            told.append(f"## {group.title}\n\n{markdown(reports[group.title])}")
        _save(folder, told, reports)
    print((folder / "bench_gpu.md").read_text(encoding="utf-8"))
    return matches and bool(reports) and all(reports.values())


def _parity(folder: Path) -> tuple[str, bool]:
    """A table of the backends' masks against PyTorch, and whether none failed."""
    matches = True
    bundle = open_bundle(folder / _PARITY_BUNDLE)
    lines = [
        "## Parity of the trained bundle",
        "",
        "| backend | status | numbers |",
        "|---|---|---|",
    ]
    for name in _GPU_BACKENDS[:3]:
        prepare(bundle, name, say)
        for row in check(bundle, name, say=say).rows:
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in row.metrics.items())
            matches &= row.status != "failed"
            lines.append(f"| {row.backend} | {row.status} | {numbers or row.reason} |")
    return "\n".join(lines) + "\n", matches


def _save(folder: Path, told: Sequence[str], reports: dict[str, BenchReport]) -> None:
    data = {title: report.to_dict() for title, report in reports.items()}
    atomic.write_text(folder / "bench_gpu.json", json.dumps(data, indent=1) + "\n")
    atomic.write_text(folder / "bench_gpu.md", "\n".join(told))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=7.5, help="of `run`")
    parser.add_argument("--group", type=int, action="append", help="1 to 6; default all; repeat it")
    parser.add_argument(
        "--target", action="append", help="of `prepare`, such as sm89 or all; repeat it"
    )
    options = parser.parse_args(arguments)
    try:
        wrong = [n for n in options.group or () if not 1 <= n <= len(GROUPS)]
        if wrong:
            raise UserError(f"there is no group {wrong[0]}. Use 1 to {len(GROUPS)}")
        groups = [GROUPS[n - 1] for n in options.group] if options.group else GROUPS
        if options.step == "prepare":
            prepare_all(options.folder, groups, options.target or ())
            return 0
        return 0 if run_all(options.folder, groups, options.minutes) else 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
