"""What every step of an encoder has to compute and to move, and in how many kernels.

The steps are those of `scripts/profile_steps.py`. Counts are of one image: multiply-adds and
elements, so that a device's rates turn them into times (`structsam_export/bench/roofline.py`). A
step reads its inputs from memory once and writes its outputs once; what a kernel keeps to itself is
not counted. Of SAM-HQ's second output only the multiply-adds are, in the neck: no elements, weights
or kernels.

Letters: h heads, M slots of one map, C channels; `pixels` are the tokens of the image without the
padding of windows, `slots` those of all maps of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from structsam.config import MergeConfig
from structsam.flops import encoder_flops
from structsam.flops_counts import BlockFlops, EncoderFlops
from structsam.merging.attention_forms import FORMS, read_forms
from structsam.models.spec import ModelSpec

STEPS = ("planning", "merge", "unmerge", "windows", "attention", "MLP", "rest")
_NORM_UNITS = 5
#: Passes over one head's width of every pixel that energy, cells and ranks take: where a runtime
#: fuses what is element by element (assumed), and where it does not (Sobel: docs/performance.md).
_PLANNING_PASSES, _PLANNING_PASSES_UNFUSED = 8, 27
#: Kernels where a runtime fuses what is element by element: what engines of TensorRT for RTX 1.7.1
#: have, read without a GPU on 2026-11-26 (docs/expected.md).
_KERNELS = {"planning": 3, "merge": 1, "unmerge": 0, "windows": 2, "MLP": 2, "rest": 3}


@dataclass(frozen=True)
class StepCost:
    """One step of one block.

    Args:
        macs: multiply-adds of matrix products, and of energy.
        activations: elements read and written, without the next two.
        weights: parameters, each read once.
        mask: elements of the additive mask, written and read.
        kernels: launches.
    """

    name: str
    macs: int = 0
    activations: int = 0
    weights: int = 0
    mask: int = 0
    kernels: int = 0


@dataclass(frozen=True)
class BlockCost:
    """The steps of one block, or of what stands before and behind all blocks.

    Args:
        kept: maps and slots of each, such as `25 x 97`.
    """

    title: str
    kind: str
    kept: str
    steps: tuple[StepCost, ...]

    def sum(self, part: str) -> int:
        """Add up `macs`, `activations`, `weights`, `mask` or `kernels` of all steps."""
        return sum(getattr(step, part) for step in self.steps)


def encoder_costs(
    spec: ModelSpec, config: MergeConfig, fused: bool = True
) -> tuple[BlockCost, ...]:
    """Return patch embedding, blocks and neck of a merged encoder.

    Args:
        fused: the runtime fuses: where the form of attention allows it, logits are never held, and
            planning is few passes; else logits are written, normalised and read, and every step
            of planning is a pass.

    Raises:
        UserError: the configuration does not fit the model.
    """
    counted = encoder_flops(spec, config)
    pixels, channels = spec.grid[0] * spec.grid[1], spec.embed_dim
    first = StepCost(
        "rest",
        counted.patch_embedding,
        3 * spec.patch_size**2 * pixels + 2 * pixels * channels,  # the positions are added
        (3 * spec.patch_size**2 + 1 + pixels) * channels,
        kernels=2,
    )
    last = StepCost(
        "rest",
        counted.neck,
        pixels * (channels + 7 * spec.channels),  # 1x1, norm, 3x3, norm
        (channels + 9 * spec.channels + 4) * spec.channels,
        kernels=4,
    )
    return (
        BlockCost("patches", "", "", (first,)),
        *(_block(spec, config, counted, block, fused) for block in counted.blocks),
        BlockCost("neck", "", "", (last,)),
    )


def _attention(spec: ModelSpec, config: MergeConfig, block: BlockFlops, fused: bool) -> StepCost:
    channels = spec.embed_dim
    fused = fused and FORMS[read_forms(config.attention)[block.kind]].fusable
    side = spec.grid[0] if block.kind == "global" else spec.window_size
    products = block.qkv + block.qk_av + block.relative + block.proj + block.folded_extra
    padding = (block.mlp - _run_in_mlp(block, channels)) // (8 * channels**2)
    elsewhere = 8 * padding * channels**2
    if config.placement == "stage":
        elsewhere += 2 * _NORM_UNITS * padding * channels
    return StepCost(
        "attention",
        products - (block.skipped - elsewhere),
        block.traffic - block.mask - block.mlp_traffic + (0 if fused else 4 * block.logits),
        4 * channels**2 + 4 * channels + 2 * (2 * side - 1) * spec.head_dim,
        block.mask,
        # qkv, two relative terms, the projection; a mask, or wider queries and keys; the rest
        4 + (1 if block.mask else 2) + (1 if fused else 7),
    )


def _run_in_mlp(block: BlockFlops, channels: int) -> int:
    """Multiply-adds of the MLP on the rows that it sees, padding left out."""
    return 8 * channels * (block.mlp_traffic // 10)


def _block(
    spec: ModelSpec, config: MergeConfig, counted: EncoderFlops, block: BlockFlops, fused: bool
) -> BlockCost:
    pixels, channels = spec.grid[0] * spec.grid[1], spec.embed_dim
    slots = sum(tier.maps * tier.slots for tier in block.tiers)
    merges = block.rate > 0
    times = 2 if counted.placement == "block" else 1  # the MLP's input is merged as well
    moved = times * (pixels + slots) * channels if block.plans else 0
    steps = [
        _attention(spec, config, block, fused),
        StepCost(
            "MLP",
            _run_in_mlp(block, channels),
            block.mlp_traffic,
            8 * channels**2 + 5 * channels,
            kernels=_KERNELS["MLP"],
        ),
    ]
    if block.plans:
        planning = _PLANNING_PASSES if fused else _PLANNING_PASSES_UNFUSED
        planned = pixels * (channels + planning * spec.head_dim)
        steps += [
            StepCost(
                "planning", block.energy + block.matching, planned, kernels=_KERNELS["planning"]
            ),
            StepCost("merge", block.pooling, moved, kernels=times * _KERNELS["merge"]),
            StepCost("unmerge", 0, moved, kernels=times * _KERNELS["unmerge"]),
        ]
    elif block.kind == "window" and not merges:  # cut, and put back
        cut = 2 * (pixels + slots) * channels
        steps.append(StepCost("windows", 0, cut, kernels=_KERNELS["windows"]))
    # both norms read and write; both sums read the residual again
    residual = slots if merges and counted.placement == "stage" else pixels
    passes = 2 * (block.norm // _NORM_UNITS) + 2 * residual * channels
    steps.append(StepCost("rest", 0, passes, 4 * channels, kernels=_KERNELS["rest"]))
    kept = " + ".join(f"{tier.maps} x {tier.slots}" for tier in block.tiers)
    return BlockCost(str(block.index), block.kind, kept, tuple(steps))
