"""Print docs/compute.md with its tables made anew; with --write, write it.

python scripts/compute_table.py --write
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structsam.config import MergeConfig
from structsam.flops import encoder_flops, unmerged_flops
from structsam.methods import METHODS
from structsam.models import MODELS, ModelSpec
from structsam_export.bench.flops_table import compare_methods

#: The placements on the page: ours as in the paper, and that of the thesis' code.
COMPARED = ("attention", "thesis")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "compute.md"
SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

SIZES = ("vit_b", "vit_l", "vit_h")
RATES = (0.25, 0.5, 0.7)
VIT_B, VIT_L = MODELS["vit_b"], MODELS["vit_l"]
LAST_FIVE = (7, 8, 9, 10, 11)
STRIDE = (("variant", "stride"),)
PARTS = ("energy", "matching", "pooling")

# The thesis, ViT-B: configuration and the published GMAC.
THESIS: tuple[tuple[str, MergeConfig, float], ...] = (
    ("ToMe, last five layers", MergeConfig("tome", 0.5, LAST_FIVE), 424.21),
    ("ToMe, global layers", MergeConfig("tome", 0.5, "global"), 394.88),
    ("ToMe, all layers", MergeConfig("tome", 0.5), 351.05),
    ("ToMeSD, last five layers", MergeConfig("tomesd", 0.5, LAST_FIVE), 424.07),
    ("ToMeSD, global layers", MergeConfig("tomesd", 0.5, "global"), 394.61),
    ("ToMeSD, all layers", MergeConfig("tomesd", 0.5), 350.75),
    ("PiToMe, last five layers", MergeConfig("pitome", 0.5, LAST_FIVE), 425.96),
    ("PiToMe, global layers", MergeConfig("pitome", 0.5, "global"), 398.10),
    ("PiToMe, all layers", MergeConfig("pitome", 0.5), 354.64),
    ("GradToMe, last five layers", MergeConfig("gradtome", 0.5, LAST_FIVE), 424.09),
    ("GradToMe, last five layers", MergeConfig("gradtome", 0.6, LAST_FIVE), 414.99),
    ("GradToMe, last five layers", MergeConfig("gradtome", 0.7, LAST_FIVE), 406.84),
    ("PiToMe stride, last five", MergeConfig("pitome", 0.5, LAST_FIVE, options=STRIDE), 425.96),
    ("PiToMe stride, last five", MergeConfig("pitome", 0.6, LAST_FIVE, options=STRIDE), 416.86),
    ("PiToMe stride, last five", MergeConfig("pitome", 0.7, LAST_FIVE, options=STRIDE), 408.71),
)  # fmt: skip

# The paper's Table 3 at "55 %", GFLOPs of ViT-B and ViT-L.
PAPER_RATE = 0.55
PAPER = {
    "structsam": (347.8, 1167.1),
    "tomesd": (362.3, 1188.2),
    "vidtome": (399.8, 1274.8),
    "algm": (381.1, 1249.6),
}
PAPER_PROMPT_AWARE = 283.0  # ViT-B


def page() -> str:
    """Return the page with every table computed."""
    text = PAGE.read_text(encoding="utf-8")
    return SECTION.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table; the first `words` columns are text, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
    return "\n".join(lines) + "\n"


def counts() -> str:
    return "\n".join(
        f"### {MODELS[model].title}, {unmerged_flops(MODELS[model]).gmac:.2f} unmerged\n\n"
        + counts_of(MODELS[model])
        for model in SIZES
    )


def counts_of(spec: ModelSpec) -> str:
    last = tuple(range(spec.depth - 5, spec.depth))
    sets = {"all layers": "all", "global": "global", "window": "window", "last five": last}
    counted = {
        (rate, layers): [compare_methods(spec, p, rate=rate, layers=layers) for p in COMPARED]
        for rate in RATES
        for layers in sets.values()
    }
    rows = []
    for name in METHODS:
        for rate in RATES:
            every = counted[rate, "all"][0][name]
            if isinstance(every, str):
                rows.append([name, f"{rate}", "-", "-", every, *["-"] * (len(sets) - 1)])
                continue
            kept = {block.kind: f"{block.slots}" for block in every.blocks}
            pairs = ([c[name] for c in counted[rate, layers]] for layers in sets.values())
            cells = (f"{ours.gmac:.1f} / {theirs.gmac:.1f}" for ours, theirs in pairs)
            rows.append([name, f"{rate}", kept["window"], kept["global"], *cells])
    head = ["method", "rate", "of 196", "of 4096", *sets]
    return markdown(head, rows)


def merge_step() -> str:
    head = ["method", *(f"{part}, {kind}" for kind in ("window", "global") for part in PARTS)]
    rows = []
    for name in METHODS:
        blocks = encoder_flops(VIT_B, MergeConfig(name, 0.5)).blocks[1:3]
        cells = [f"{getattr(block, part) / 1e6:.1f}" for block in blocks for part in PARTS]
        rows.append([name, *cells])
    return markdown(head, rows)


def thesis() -> str:
    rows = [["dense", "", "486.42", *[f"{unmerged_flops(VIT_B).gmac:.2f}"] * 2]]
    for label, config, published in THESIS:
        ours, theirs = (encoder_flops(VIT_B, config, p).gmac for p in COMPARED)
        rows.append([label, f"{config.rate}", f"{published:.2f}", f"{theirs:.2f}", f"{ours:.2f}"])
    concat = encoder_flops(VIT_B, MergeConfig("pitome", 0.5, LAST_FIVE), "thesis")
    on_all_heads = concat.total + (VIT_B.num_heads - 1) * concat.sum("matching")
    rows.append(["PiToMe on all channels", "0.5", "451.61", f"{on_all_heads / 1e9:.2f}", "-"])
    head = ["ViT-B", "rate", "thesis", "`--placement thesis`", "our placement"]
    return markdown(head, rows)


def paper() -> str:
    rows = []
    for name, published in PAPER.items():
        for spec, gmac in zip((VIT_B, VIT_L), published, strict=True):
            config = MergeConfig(name, PAPER_RATE)
            ours, theirs = (encoder_flops(spec, config, p).gmac for p in COMPARED)
            rates = [single_rate(spec, name, gmac, p) for p in ("thesis", "attention")]
            rows.append(
                [name, spec.name, f"{gmac}", f"{theirs:.1f}", f"{ours:.1f}"]
                + [f"{rate:.3f}" for rate in rates]
            )
    head = ["method", "model", "paper", "thesis placement", "our placement"]
    return markdown([*head, "rate it needs, thesis placement", "in ours"], rows, 2)


def implied() -> str:
    rows = []
    for name in PAPER:
        (window, whole), gaps = both_rates(name)
        rows.append(
            [name]
            + [f"{window} ({1 - window / 196:.3f})", f"{whole} ({1 - whole / 4096:.3f})"]
            + [f"{gap:+.2f}" for gap in gaps]
        )
    head = ["method", "tokens kept of 196", "of 4096", "gap, ViT-B", "gap, ViT-L"]
    return markdown(head, rows)


def prompt_aware() -> str:
    rows = []
    for rate in (0.5, PAPER_RATE, 0.7, 0.75):
        cells = [f"{rate}"]
        for form in ("rank", "windows"):
            for placement in ("thesis", "attention"):
                config = MergeConfig(rate=rate, prompt_aware=form)
                cells.append(f"{encoder_flops(VIT_B, config, placement).gmac:.1f}")
        rows.append(cells)
    forms = [f"{form}, {where}" for form in ("rank", "windows") for where in ("thesis", "ours")]
    return markdown(["rate", *forms], rows)


def prompt_rate() -> str:
    """Return the sentence about the rate that 283.0 needs."""
    rate = single_rate(VIT_B, "structsam", PAPER_PROMPT_AWARE, "attention")
    least = encoder_flops(VIT_B, MergeConfig(rate=0.75), "thesis").gmac
    return (
        f"In the thesis' placement 2x2 cells cost at least {least:.1f} GMAC, at their limit 0.75.\n"
        f"In our placement {PAPER_PROMPT_AWARE} is what a rate of about {rate:.2f} costs.\n"
    )


def energies() -> str:
    """Return the paper's Table 5 beside what counts the same: 10^6 for one map."""
    sorted_tokens = (("variant", "sorted"),)
    central = (*sorted_tokens, ("operator", "central"))
    rows = []
    for label, published, config in (
        ("PiToMe", "1073.7", MergeConfig("pitome", 0.5)),
        (
            '"StructSAM (Central)": GradToMe sorted, central',
            "268.4",
            MergeConfig("gradtome", 0.5, options=central),
        ),
        (
            '"StructSAM (Sobel)": GradToMe sorted, Sobel',
            "273.2",
            MergeConfig("gradtome", 0.5, options=sorted_tokens),
        ),
        ("StructSAM, central", "-", MergeConfig(options=(("operator", "central"),))),
        ("StructSAM, Sobel", "-", MergeConfig()),
    ):
        block = encoder_flops(VIT_B, config).blocks[2]
        rows.append([label, published, f"{(block.energy + block.matching) / 1e6:.1f}"])
    return markdown(["rule", "paper", "our count of energy and matching"], rows)


def total(spec: ModelSpec, window: Any, whole: Any, merging: float, placement: str) -> Any:
    """GMAC of an encoder that keeps `window` of 196 and `whole` of 4096 tokens in all layers.

    Written out once more, so that it also takes fractions and arrays of counts.
    """
    channels = spec.embed_dim
    units = unmerged_flops(spec).total + merging
    layers = len(spec.global_blocks)
    for count, maps, tokens, positions, kept in (
        (spec.depth - layers, 25, 196, 28, window),
        (layers, 1, 4096, 128, whole),
    ):
        linear = (3 if placement == "thesis" else 4) * channels**2 + channels * positions
        gone = linear * (tokens - kept) + 2 * channels * (tokens**2 - kept**2)
        units = units - count * maps * gone
    return units / 1e9


def merging_of(spec: ModelSpec, method: str) -> int:
    """Multiply-adds of energy and matching, in all layers at the paper's rate."""
    flops = encoder_flops(spec, MergeConfig(method, PAPER_RATE))
    return flops.sum("energy") + flops.sum("matching")


def single_rate(spec: ModelSpec, method: str, gmac: float, placement: str) -> float:
    """Return the rate that costs this much, the same in all layers and without rounding."""
    merging = merging_of(spec, method)
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        cost = total(spec, 196 * (1 - rate), 4096 * (1 - rate), merging, placement)
        low, high = (rate, high) if cost > gmac else (low, rate)
    return low


def both_rates(method: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the counts for windows and global maps that fit ViT-B and ViT-L best, and the gaps.

    In the thesis' placement; the sum of both squared gaps in GMAC is the least of all counts.
    """
    window = np.arange(49, 197, dtype=np.float64)[:, None]
    whole = np.arange(1024, 4097, dtype=np.float64)[None, :]
    gaps = [
        total(spec, window, whole, merging_of(spec, method), "thesis") - gmac
        for spec, gmac in zip((VIT_B, VIT_L), PAPER[method], strict=True)
    ]
    i, j = np.unravel_index((gaps[0] ** 2 + gaps[1] ** 2).argmin(), gaps[0].shape)
    return (49 + int(i), 1024 + int(j)), (float(gaps[0][i, j]), float(gaps[1][i, j]))


TABLES: dict[str, Callable[[], str]] = {
    "counts": counts,
    "merge_step": merge_step,
    "thesis": thesis,
    "paper": paper,
    "implied": implied,
    "prompt_rate": prompt_rate,
    "prompt_aware": prompt_aware,
    "energies": energies,
}


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/compute.md")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
