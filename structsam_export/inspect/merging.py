"""Draw what merging methods do to a photo: groups, destinations, energy; by method and by depth.

Every method plans on the tokens of its own merged forward pass, as in the exported encoder: at
block 8 two methods do not see the same tokens, because each has merged before. (The spectrum
study compares methods on the stock model's tokens instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.merged_map import MergedMap, merged_map
from structsam_export.inspect.report import Inspection
from structsam_export.inspect.sheets import Inspected, draw_inspection
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam.models import ModelSpec

Say = Callable[[str], None]


def inspect_merging(
    source: ModelSource,
    image: str | Path | None = None,
    methods: str | Sequence[str] = "all",
    rate: float | Sequence[float] = 0.5,
    block: str | int | Sequence[int] = 8,
    layers: str | Sequence[int] = "all",
    options: Mapping[str, Any] | Sequence[str] = (),
    align: int = 1,
    proportional: bool = False,
    depth_method: str | None = None,
    out: str | Path = "inspect",
    say: Say = lambda text: None,
) -> Inspection:
    """Draw one photo: a picture per method and block, a sheet per block, a sheet over depth.

    Files in `out`: `PHOTO_rateR_blockBB_METHOD.png`, `PHOTO_rateR_blockBB_methods.png` and
    `PHOTO_rateR_depth_METHOD.png`, each replaced in one step.

    Args:
        image: a photo; the one that comes with the package when None.
        methods: `all`, names separated by commas, or a sequence of names.
        rate: share of tokens to remove; one number, or one per block. A method that cannot do it
            gets a tile that says so.
        block: which blocks to draw for every method: an index, several (`2,5,8`), or `all`.
        layers: which blocks merge: `all`, `global`, `window`, or indices.
        options: the methods' own, as a mapping or as typed (`operator=central`); each goes to
            those methods that have it.
        align, proportional: see `MergeConfig`.
        depth_method: which method the sheet over depth shows; the first that can be drawn when
            None.
        out: folder for the pictures.
        say: told what is done, step by step.

    Raises:
        UserError: any input that cannot be used, or nothing that can be drawn.
    """
    import structsam
    from structsam.block_table import block_table
    from structsam.config import MergeConfig
    from structsam.methods import choose_methods
    from structsam_export.pipeline import SAMPLE_IMAGE

    spec = source.spec
    file = Path(image).expanduser() if image else SAMPLE_IMAGE
    photo = read_image(file)
    pixels, geometry = preprocess(photo, spec.preprocessing)
    names = choose_methods(methods)
    if depth_method is not None and depth_method not in names:
        raise UserError(
            f"depth_method {depth_method!r} is none of the methods to draw: {', '.join(names)}"
        )
    chosen = _checked_blocks(block, spec)
    settings = _options_of(names, options)
    described = source.describe()
    found: dict[str, Inspected] = {}
    configs = {}
    for name in names:
        try:
            config = MergeConfig.of(
                method=name,
                rate=rate,
                layers=layers,
                options=settings[name],
                align=align,
                proportional=proportional,
            )
            block_table(config, spec.grid, spec.window_sizes)  # refuses what does not fit
            configs[name] = config
        except UserError as error:
            found[name] = Inspected(name, note=str(error), options=settings[name])
    if not configs:
        raise UserError(found[names[0]].note)
    say(f"loading {spec.name}")
    sam = source.load()
    shown_in_depth = depth_method or next(iter(configs))
    for name, config in configs.items():
        in_depth = name == shown_in_depth
        say(f"merging by {name}")
        structsam.apply_merging(sam, config)
        maps = observe(sam, pixels, None if in_depth else chosen)
        found[name] = Inspected(name, maps, _rates(sam), settings[name], in_depth=in_depth)
    found = {name: found[name] for name in names}
    drawable = [one for one in found.values() if set(one.maps) & set(chosen)]
    if not drawable:
        notes = [one.note for one in found.values() if one.note]
        raise UserError(notes[0] if notes else _nothing_merges(chosen, layers))
    say("drawing")
    return draw_inspection(
        list(found.values()),
        photo=photo,
        geometry=geometry,
        spec=spec,
        blocks=chosen,
        rate=rate,
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


def _options_of(
    names: Sequence[str], options: Mapping[str, Any] | Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Give every option to the methods that have it and allow its value.

    Raises:
        UserError: an option that none of the methods takes.
    """
    from structsam.methods import METHODS
    from structsam.methods.options import known_options, parse_options

    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for given in options.items() if isinstance(options, Mapping) else options:
        refusals = []
        for name in names:
            try:
                if isinstance(given, str):
                    chosen[name].update(parse_options(METHODS[name], [given]))
                else:
                    chosen[name].update(known_options(METHODS[name], dict([given])))
            except UserError as error:
                refusals.append(str(error))
        if len(refusals) == len(names):
            raise UserError(refusals[0])
    return chosen


def _nothing_merges(blocks: Sequence[int], layers: str | Sequence[int]) -> str:
    which = f"block {blocks[0]} merges" if len(blocks) == 1 else "the chosen blocks merge"
    return f"{which} nothing with these rates and layers={layers!r}. Choose another block"
