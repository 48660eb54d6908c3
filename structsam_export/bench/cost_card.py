"""What a bundle's encoder has to cost, told before anything is measured.

All of it follows from the manifest (`flops`, written at export), so no torch is needed. A rate
that was measured on this machine turns it into the time that a perfect run would take.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from structsam_export.bundle.folder import Bundle
from structsam_export.graph.precisions import float_type

_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class CostCard:
    """Implied cost of one encoder for one image.

    Args:
        gmac: multiply-adds / 10^9 as papers count them, merging's overhead included.
        executed_gmac: with what the folded attention form adds.
        overhead_gmac: the part of `gmac` that merging itself costs.
        kept: tokens kept per kind of block and rate.
        weight_bytes: size of the ONNX file and its data.
        largest_activation_bytes: with fused attention.
        logits_bytes: the largest attention matrix, which exists where attention is not fused.
        intensity: FLOP per byte of weights and of the matrix products' inputs and outputs.
        ideal_ms: time of the executed FLOP at the measured rate of a matrix product; None when
            no rate is known.
    """

    bundle: str
    precision: str
    gmac: float
    executed_gmac: float
    overhead_gmac: float
    kept: tuple[str, ...]
    weight_bytes: int
    largest_activation_bytes: int
    logits_bytes: int
    intensity: float
    ideal_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {**asdict(self), "kept": list(self.kept)}

    def lines(self) -> list[str]:
        """Say it in words, one fact per line."""
        mib = 2**20
        told = [
            f"implied cost of {self.bundle} ({self.precision}), encoder, one image:",
            f"  {self.gmac:.1f} GMAC, of which merging {self.overhead_gmac:.2f}; "
            f"executed, with folded attention, {self.executed_gmac:.1f}",
            f"  tokens kept: {', '.join(self.kept)}",
            f"  weights {self.weight_bytes / mib:.0f} MiB; largest activation "
            f"{self.largest_activation_bytes / mib:.0f} MiB, and {self.logits_bytes / mib:.0f} MiB "
            "of attention logits where attention is not fused",
            f"  arithmetic intensity {self.intensity:.0f} FLOP/byte",
        ]
        if self.ideal_ms is not None:
            told.append(f"  {self.ideal_ms:.0f} ms at this CPU's measured float32 GEMM rate")
        return told


def cost_card(bundle: Bundle, flop_rate: float | None = None) -> CostCard | None:
    """Return the card, or None for a bundle whose manifest holds no `flops`.

    Args:
        flop_rate: FLOP/s that a matrix product reaches here.
    """
    flops = bundle.manifest.get("flops")
    if not flops:
        return None
    size = _BYTES[float_type(bundle.precision)]
    blocks = flops["blocks"]
    weights = _file_bytes(bundle)
    traffic = size * sum(block["traffic"] for block in blocks)
    executed = 2 * flops["executed"]
    kept = dict.fromkeys(_kept(block) for block in blocks)
    return CostCard(
        bundle=bundle.name,
        precision=bundle.precision,
        gmac=flops["total"] / 1e9,
        executed_gmac=flops["executed"] / 1e9,
        overhead_gmac=flops["overhead"] / 1e9,
        kept=tuple(kept),
        weight_bytes=weights,
        largest_activation_bytes=size * max(block["widest"] for block in blocks),
        logits_bytes=size * max(block["logits"] for block in blocks),
        intensity=executed / (weights + traffic),
        ideal_ms=None if not flop_rate else executed / flop_rate * 1e3,
    )


def _kept(block: dict[str, Any]) -> str:
    """Say how many tokens one map keeps: `window 97/196`, or `window 145+73/196` in tiers."""
    slots = [tier["slots"] for tier in block.get("tiers", ())] or [block["slots"]]
    return f"{block['kind']} {'+'.join(map(str, slots))}/{block['tokens']}"


def _file_bytes(bundle: Bundle) -> int:
    file = bundle.onnx_path("encoder")
    data = file.with_name(file.name + ".data")
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0)
