"""Look into an encoder while it runs: what enters its blocks, and what they plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from structsam.apply import blocks_of, image_encoder_of, merged_blocks
from structsam.merging.block_plan import BlockMerging


class _LastPlanned(Exception):
    """Leaves an encoder whose later blocks nobody looks at."""


@contextmanager
def record_plans(model: nn.Module, last: int | None = None) -> Iterator[dict[int, BlockMerging]]:
    """Record what every block plans while the encoder, or a block of it, runs in this context.

    Args:
        model: a `Sam` or its image encoder, merged by `apply_merging`.
        last: leave the context as soon as the block of this index has planned.

    Yields:
        Block index -> its merging (`.plan`, `.energy`), for blocks that make a plan; of several
        calls the latest.
    """
    planned: dict[int, BlockMerging] = {}

    def record(index: int, merging: BlockMerging) -> None:
        planned[index] = merging
        if index == last:
            raise _LastPlanned

    blocks = {index: block for index, block in enumerate(merged_blocks(model)) if block.plans}
    before = {index: block.on_plan for index, block in blocks.items()}
    try:
        for index, block in blocks.items():
            block.on_plan = partial(record, index)
        yield planned
    except _LastPlanned:
        pass
    finally:
        for index, block in blocks.items():
            block.on_plan = before[index]


def block_inputs(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Run an encoder, merged or not, on preprocessed images.

    Args:
        model: a `Sam` or its image encoder.
        images: [B, 3, S, S].

    Returns:
        What enters every block, [B, H', W', C] each, and the embedding [B, 256, H', W'].
    """
    encoder = image_encoder_of(model)
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _block, given: inputs.append(given[0]))
        for block in blocks_of(model)
    ]
    try:
        found = encoder(images)
        return inputs, found[0] if isinstance(found, tuple) else found
    finally:
        for hook in hooks:
            hook.remove()
