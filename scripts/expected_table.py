"""Print docs/expected.md with its tables made anew; with --write, write it.

python scripts/expected_table.py --write
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from structsam.config import PLACEMENTS, MergeConfig
from structsam.merging.attention_forms import FORMS
from structsam.models import MODELS
from structsam_export.bench.roofline import encoder_bound, step_times
from structsam_export.devices import DEVICES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "expected.md"
SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZES = ("vit_b", "vit_l")
RATES = (0.0, 0.5, 0.7)
#: (device, model, rate, placement, form) -> ms of a call, by CUDA events. Not measured yet.
MEASURED: dict[tuple[str, str, float, str, str], float] = {}


def page() -> str:
    """Return the page with every table computed."""
    text = PAGE.read_text(encoding="utf-8")
    return SECTION.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def markdown(head: list[str], rows: list[list[str]], words: int) -> str:
    """Return a table; the first `words` columns are text, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def devices() -> str:
    head = ["`--device`", "device", "what to know", "FP16, TFLOP/s", "INT8, TOP/s", "memory, GB/s"]
    rows = [
        [
            f"`{name}`",
            f"[{device.title}]({device.source})",
            device.note,
            f"{device.fp16 / 1e12:g}",
            f"{device.int8 / 1e12:g}",
            f"{device.bandwidth / 1e9:g}",
        ]
        for name, device in DEVICES.items()
    ]
    return markdown(head, rows, 3)


def mergings() -> Iterator[tuple[float, str]]:
    """Rates with placements; where nothing merges there is nothing to place."""
    for rate in RATES:
        for placement in PLACEMENTS if rate else PLACEMENTS[:1]:
            yield rate, placement


def numbers(device: str, model: str, rate: float, placement: str, form: str) -> list[str]:
    config = MergeConfig(rate=rate, placement=placement, attention=form)
    total = encoder_bound(MODELS[model], config, DEVICES[device]).total
    cells = [total.compute_ms, total.bytes_ms, total.bound_ms, total.launch_ms, total.all_ms]
    measured = MEASURED.get((device, model, rate, placement, form))
    return [*(f"{cell:.3g}" for cell in cells), "" if measured is None else f"{measured:.2f}"]


def table_of(device: str) -> str:
    head = ["rate", "placement", "attention"]
    for model in SIZES:
        size = MODELS[model].title.split()[-1]
        head += [f"{size}: compute", "bytes", "bound", "launches", "all", "measured"]
    rows = []
    for rate, placement in mergings():
        forms: dict[tuple[str, ...], list[str]] = {}
        for form in FORMS:
            cells = [cell for m in SIZES for cell in numbers(device, m, rate, placement, form)]
            forms.setdefault(tuple(cells), []).append(f"`{form}`")
        for cells, names in forms.items():
            rows.append([f"{rate:g}", placement if rate else "", ", ".join(names), *cells])
    return markdown(head, rows, 3)


def bounds() -> str:
    return "\n".join(f"### {device.title}\n\n{table_of(name)}" for name, device in DEVICES.items())


#: ViT-B, rate 0.5, ms per step under ONNX Runtime's profiler on two threads of an Intel Xeon:
#: docs/performance.md, "What merging adds". A matrix product reached 348 GFLOP/s in that run.
CPU_PEAK = 348e9
#: Bytes/s of copying, read and written ones. Assumed: it was not measured in that run.
CPU_BANDWIDTH = 12e9
CPU_MS = {
    "attention": {
        "planning": 50, "merge": 35, "unmerge": 11, "leaving padding out": 20, "windows": 25,
        "attention": 1131, "MLP": 1656, "rest": 71, "made by ONNX Runtime": 76,
    },
    "block": {
        "planning": 49, "merge": 66, "unmerge": 23, "leaving padding out": 22, "windows": 46,
        "attention": 1105, "MLP": 848, "rest": 68, "made by ONNX Runtime": 75,
    },
    "stage": {
        "planning": 36, "merge": 22, "unmerge": 8, "leaving padding out": 19, "windows": 12,
        "attention": 1152, "MLP": 879, "rest": 63, "made by ONNX Runtime": 77,
    },
}  # fmt: skip
#: What is compared: the model knows no padding apart from merging, nor what a runtime adds.
GROUPS = {
    "attention": ("attention",),
    "MLP": ("MLP",),
    "rest": ("rest", "made by ONNX Runtime"),
    "what merging adds": ("planning", "merge", "unmerge", "leaving padding out", "windows"),
}


def cpu_shares(placement: str, bandwidth: float = CPU_BANDWIDTH) -> dict[str, tuple[float, float]]:
    """Return the predicted and the measured share of every group's time."""
    config, spec = MergeConfig(rate=0.5, placement=placement, attention="folded"), MODELS["vit_b"]
    times = step_times(spec, config, CPU_PEAK, bandwidth, size=4, fused=False)
    measured = CPU_MS[placement]
    return {
        group: (
            sum(times.get(step, 0.0) for step in steps) / sum(times.values()),
            sum(measured[step] for step in steps) / sum(measured.values()),
        )
        for group, steps in GROUPS.items()
    }


def cpu() -> str:
    head = ["step"]
    for placement in CPU_MS:
        head += [f"{placement}: predicted", "measured", "factor"]
    shares = {placement: cpu_shares(placement) for placement in CPU_MS}
    rows = []
    for group in GROUPS:
        cells = []
        for placement in CPU_MS:
            predicted, measured = shares[placement][group]
            cells += [f"{100 * predicted:.1f} %", f"{100 * measured:.1f} %"]
            cells.append(f"{predicted / measured:.2f}")
        rows.append([group, *cells])
    return markdown(head, rows, 1)


TABLES = {"devices": devices, "cpu": cpu, "bounds": bounds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write docs/expected.md")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
