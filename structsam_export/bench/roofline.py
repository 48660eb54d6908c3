"""What a device needs at least for an encoder: compute, bytes and launches of every block.

Of compute and bytes the larger counts, because a GPU does both at once; launches come on top, as
if no kernel started before the one before it had ended. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from structsam.config import MergeConfig
from structsam.models.spec import ModelSpec
from structsam.step_costs import STEPS, BlockCost, encoder_costs
from structsam_export.bundle.folder import Bundle
from structsam_export.devices import Device
from structsam_export.graph.attention_choice import attention_for

_FP16 = 2  # bytes
CONVENTION = (
    "Times in ms, sizes in MiB. compute: multiply-adds at the dense peak. bytes: weights, what "
    "products and merge steps read and write (moved; logits too where attention is folded, which "
    "is not fused), and an additive mask, at the memory's full rate. bound: the larger of both. "
    "launches: kernels, and their time. all: bound and launches. Nothing here is measured."
)


@dataclass(frozen=True)
class BlockBound:
    """Times of one block, or of all, in ms; bytes of weights, activations and the mask."""

    title: str
    kind: str
    kept: str
    compute_ms: float
    weight_bytes: int
    activation_bytes: int
    mask_bytes: int
    bytes_ms: float
    bound_ms: float
    kernels: int
    launch_ms: float

    @property
    def bound_by(self) -> str:
        """`compute` or `bytes`, whichever takes longer."""
        return "compute" if self.compute_ms >= self.bytes_ms else "bytes"

    @property
    def all_ms(self) -> float:
        """Bound and launches."""
        return self.bound_ms + self.launch_ms


@dataclass(frozen=True)
class EncoderBound:
    """What a device needs at least for one call of an encoder."""

    device: Device
    batch: int
    blocks: tuple[BlockBound, ...]
    total: BlockBound

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        rows = [
            {**asdict(row), "bound_by": row.bound_by, "all_ms": row.all_ms}
            for row in (*self.blocks, self.total)
        ]
        return {
            "device": asdict(self.device),
            "precision": "fp16",
            "batch": self.batch,
            "blocks": rows[:-1],
            "total": rows[-1],
        }


def encoder_bound(
    spec: ModelSpec, config: MergeConfig, device: Device, batch: int = 1
) -> EncoderBound:
    """Bound one call on `batch` images in FP16; weights are read once for all of them.

    Attention `auto` is what an engine of TensorRT gets.

    Raises:
        UserError: the configuration does not fit the model.
    """
    config, _ = attention_for(config, "tensorrt", "fp16")
    blocks = tuple(_bound(cost, device, batch) for cost in encoder_costs(spec, config))
    return EncoderBound(device, batch, blocks, _sum(blocks))


def _bound(cost: BlockCost, device: Device, batch: int) -> BlockBound:
    weights = _FP16 * cost.sum("weights")
    moved = _FP16 * batch * cost.sum("activations")
    mask = _FP16 * batch * cost.sum("mask")
    compute = 2e3 * batch * cost.sum("macs") / device.fp16
    in_bytes = 1e3 * (weights + moved + mask) / device.bandwidth
    kernels = cost.sum("kernels")
    return BlockBound(
        title=cost.title,
        kind=cost.kind,
        kept=cost.kept,
        compute_ms=compute,
        weight_bytes=weights,
        activation_bytes=moved,
        mask_bytes=mask,
        bytes_ms=in_bytes,
        bound_ms=max(compute, in_bytes),
        kernels=kernels,
        launch_ms=1e3 * kernels * device.launch,
    )


def _sum(blocks: tuple[BlockBound, ...]) -> BlockBound:
    numbers = {
        name: sum(getattr(block, name) for block in blocks)
        for name in BlockBound.__dataclass_fields__
        if name not in ("title", "kind", "kept")
    }
    return BlockBound("all", "", "", **numbers)


def bound_of_bundle(bundle: Bundle, device: Device) -> EncoderBound:
    """Bound a bundle's encoder, for as many images as one call takes; FP32 ones as if in FP16.

    Raises:
        UserError: this version no longer has the bundle's merging.
    """
    spec, config = merging_of_bundle(bundle)
    batch = int(bundle.part("encoder").inputs[0].shape[0])
    return encoder_bound(spec, config, device, batch)


def merging_of_bundle(bundle: Bundle) -> tuple[ModelSpec, MergeConfig]:
    """Return the model and the merging of a bundle; a stock encoder is rate 0, `dense`.

    Raises:
        UserError: this version no longer has the bundle's merging.
    """
    merging = bundle.manifest["merging"]
    stock = merging["attention"] == "stock"
    config = MergeConfig(rate=0.0, attention="dense") if stock else MergeConfig.from_dict(merging)
    return bundle.model.spec, config


def bound_table(title: str, found: EncoderBound) -> Table:
    """Show what bounds every block, in ms and MiB."""
    table = Table(title=f"at least, on {found.device.title}, FP16: {title}")
    table.add_column("block")
    sizes = ("weights", "moved", "mask")
    for column in ("kept", "compute", *sizes, "bytes", "bound", "launches", "all"):
        table.add_column(column, justify="right")
    for row in (*found.blocks, found.total):
        mib = (n / 2**20 for n in (row.weight_bytes, row.activation_bytes, row.mask_bytes))
        table.add_row(
            f"{row.title} {row.kind}".strip(),
            row.kept,
            f"{row.compute_ms:.3f}",
            *(f"{size:.0f}" for size in mib),
            f"{row.bytes_ms:.3f}",
            f"{row.bound_ms:.3f}",
            f"{row.kernels} = {row.launch_ms:.3f}",
            f"{row.all_ms:.3f}",
            style="bold" if row is found.total else None,
            end_section=row is found.blocks[-1],
        )
    return table


def bound_notes(bounds: Sequence[EncoderBound]) -> list[str]:
    """Say what the tables' columns are, and where each device's numbers come from."""
    lines = [CONVENTION]
    for device in dict.fromkeys(bound.device for bound in bounds):
        note = f"; {device.note}" if device.note else ""
        lines.append(
            f"{device.title}: {device.fp16 / 1e12:g} TFLOP/s FP16, {device.int8 / 1e12:g} TOP/s "
            f"INT8, both dense, {device.bandwidth / 1e9:g} GB/s{note} ({device.source}); "
            f"{device.launch * 1e6:g} us a launch (assumed)"
        )
    return lines


def step_times(
    spec: ModelSpec, config: MergeConfig, peak: float, bandwidth: float, size: int, fused: bool
) -> dict[str, float]:
    """Return the seconds that every one of `STEPS` takes at least, launches left out.

    Args:
        peak: FLOP/s.
        bandwidth: bytes/s.
        size: bytes of an element.
        fused: as in `encoder_costs`.
    """
    times = dict.fromkeys(STEPS, 0.0)
    for block in encoder_costs(spec, config, fused):
        for step in block.steps:
            moved = size * (step.activations + step.weights + step.mask)
            times[step.name] += max(2 * step.macs / peak, moved / bandwidth)
    return times
