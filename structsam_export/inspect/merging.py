"""Draw what merging methods do to a photo: groups, destinations, energy; by method and by depth.

Every method plans on the tokens of its own merged forward pass, as in the exported encoder: at
block 8 two methods do not see the same tokens, because each has merged before. (The spectrum
study compares methods on the stock model's tokens instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.merged_map import MergedMap, merged_map
from structsam_export.inspect.report import Inspection
from structsam_export.inspect.sheets import Inspected, draw_inspection
from structsam_export.merging_choices import Choice
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.models import ModelSpec

Say = Callable[[str], None]


def inspect_merging(
    source: ModelSource,
    merging: Sequence[Choice],
    image: str | Path | None = None,
    block: str | int | Sequence[int] = 8,
    depth_method: str | None = None,
    out: str | Path = "inspect",
    say: Say = lambda text: None,
) -> Inspection:
    """Draw one photo: a picture per method and block, a sheet per block, a sheet over depth.

    Files in `out`: `PHOTO_rateR_blockBB_METHOD.png`, `PHOTO_rateR_blockBB_methods.png` and
    `PHOTO_rateR_depth_METHOD.png`, each replaced in one step.

    Args:
        merging: one choice for every method, all at one rate (see `choices`). A method that cannot
            do it gets a tile that says so.
        image: a photo; the one that comes with the package when None.
        block: which blocks to draw for every method: an index, several (`2,5,8`), or `all`.
        depth_method: which method the sheet over depth shows; the first that can be drawn when
            None.
        out: folder for the pictures.
        say: told what is done, step by step.

    Raises:
        UserError: any input that cannot be used, or nothing that can be drawn.
    """
    import structsam
    from structsam_export.pipeline import SAMPLE_IMAGE

    spec = source.spec
    file = Path(image).expanduser() if image else SAMPLE_IMAGE
    photo = read_image(file)
    pixels, geometry = preprocess(photo, spec.preprocessing)
    names = [choice.method for choice in merging]
    if depth_method is not None and depth_method not in names:
        raise UserError(
            f"depth_method {depth_method!r} is none of the methods to draw: {', '.join(names)}"
        )
    chosen = _checked_blocks(block, spec)
    described = source.describe()
    atomic.require_writable(Path(out))
    say(f"loading {spec.label}")
    sam = source.load()
    found: list[Inspected] = []
    for choice in merging:
        if choice.config is None:
            note = str(choice.refusal)
            found.append(Inspected(choice.method, note=note, options=choice.options))
            continue
        first = not any(one.in_depth for one in found)
        in_depth = first if depth_method is None else choice.method == depth_method
        say(f"merging by {choice.method}")
        structsam.apply_merging(sam, choice.config)
        maps = observe(sam, pixels, None if in_depth else chosen)
        found.append(Inspected(choice.method, maps, _rates(sam), choice.options, in_depth=in_depth))
    if not any(set(one.maps) & set(chosen) for one in found):
        raise UserError(_nothing_merges(chosen, merging))
    say("drawing")
    return draw_inspection(
        found,
        photo=photo,
        geometry=geometry,
        spec=spec,
        blocks=chosen,
        rate=merging[0].rate,
        weights=described.title,
        random=described.is_random,
        image=file,
        out=Path(out),
    )


def observe(
    sam: Sam, pixels: np.ndarray, blocks: Sequence[int] | None = None
) -> dict[int, MergedMap]:
    """Run a merged encoder and keep what its blocks decided.

    Args:
        sam: merged by `structsam.apply_merging` without a prompt box, float32, in eval mode.
        pixels: the encoder's input, float32 [1, 3, S, S].
        blocks: indices to look at; all when None. The encoder is left after the last of them.

    Returns:
        By index; blocks that merge nothing are left out.
    """
    import torch

    from structsam.apply import merged_blocks
    from structsam.recording import record_plans

    methods = {
        index: block.method
        for index, block in enumerate(merged_blocks(sam))
        if block.method is not None and (blocks is None or index in blocks)
    }
    if not methods:
        return {}
    with torch.inference_mode(), record_plans(sam, last=max(methods)) as planned:
        sam.image_encoder(torch.from_numpy(pixels))
    maps = {}
    for index, method in methods.items():
        merging, plan = planned[index], planned[index].plan
        energy = None if merging.energy is None else merging.energy[0].numpy()
        maps[index] = merged_map(
            plan.slot_of_token.numpy(),
            plan.anchor_of_slot.numpy(),
            plan.grid,
            merging.maps.image,
            energy,
            "" if energy is None else method.energy_name,
        )
    return maps


def _rates(sam: Sam) -> dict[int, float]:
    from structsam.apply import merged_blocks

    blocks = enumerate(merged_blocks(sam))
    return {index: block.method.rate for index, block in blocks if block.method is not None}


def _checked_blocks(block: str | int | Sequence[int], spec: ModelSpec) -> list[int]:
    """Return the indices to draw, each once, ascending.

    Raises:
        UserError: no index, or one that the encoder has not.
    """
    every = f"the encoder of {spec.name} has blocks 0 to {spec.depth - 1}"
    if block == "all":
        return list(range(spec.depth))
    try:
        given = block.split(",") if isinstance(block, str) else block
        indices = [given] if isinstance(given, int) else [int(one) for one in given]
    except (TypeError, ValueError):
        raise UserError(f"block {block!r} is no block. Use an index, several, or all") from None
    outside = [index for index in indices if not 0 <= index < spec.depth]
    if outside:
        raise UserError(f"block {outside[0]} does not exist: {every}")
    if not indices:
        raise UserError(f"no block was given: {every}")
    return sorted(set(indices))


def _nothing_merges(blocks: Sequence[int], merging: Sequence[Choice]) -> str:
    which = f"block {blocks[0]} merges" if len(blocks) == 1 else "the chosen blocks merge"
    layers = next(choice.config.layers for choice in merging if choice.config)
    return f"{which} nothing with these rates and layers={layers!r}. Choose another block"
