"""How well every merging method keeps the spectrum of the token graph, block by block.

Every method is judged on the same tokens: those that enter attention in the *stock* model (after
the norm and the cut into windows). In a merged model's own forward pass a block's tokens depend
on all merging before it, and two methods could not be compared at one block. The plan of a block
comes from the merged block itself, which is left as soon as it has planned.

A block's discrepancy is the mean over its windows and over the images. Padding is zero after the
norm and counts for nothing (`structsam.spectrum`). It ranks methods by the cosine of what they
merge, which stands beside it; docs/fidelity.md says what that means for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.spectrum_report import (
    BlockSpectrum,
    SpectrumReport,
    SpectrumRow,
    save_report,
)
from structsam_export.merging_choices import Choice, choices
from structsam_export.plot_style import require_matplotlib
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

Say = Callable[[str], None]


def run(
    source: ModelSource,
    merging: Sequence[Choice],
    images: Sequence[str | Path] = (),
    graph: str = "affinity",
    out: str | Path = "spectrum",
    say: Say = lambda text: None,
) -> SpectrumReport:
    """Study one model and write `spectrum.csv`, `spectrum.json` and `spectrum.png` into `out`.

    Args:
        merging: what to compare, see `spectrum_choices`; a rate above a method's cap is a row
            that says so.
        images: photos; the one that comes with the package when none is given.
        graph: key of `structsam.token_graphs.GRAPHS`.
        say: told what is done, step by step.

    Raises:
        UserError: any input that cannot be used; nothing is written then.
    """
    from structsam.token_graphs import edge_weight
    from structsam_export.pipeline import SAMPLE_IMAGE

    spec = source.spec
    require_matplotlib()
    edge_weight(graph)  # refuses an unknown one
    photos = [Path(image).expanduser() for image in images] or [SAMPLE_IMAGE]
    pixels = [preprocess(read_image(photo), spec.preprocessing)[0] for photo in photos]
    described = source.describe()
    atomic.require_writable(Path(out))
    say(f"loading {spec.label}")
    rows = spectrum_study(source.load(), pixels, merging, graph, say)
    say("writing the report")
    layers = next(choice.config.layers for choice in merging if choice.config)
    report = SpectrumReport(
        model=spec.label,
        weights=described.title,
        graph=graph,
        layers=layers if isinstance(layers, str) else ",".join(map(str, layers)),
        images=tuple(photo.name for photo in photos),
        rows=tuple(rows),
    )
    return replace(report, files=save_report(report, Path(out)))


def spectrum_choices(
    spec: ModelSpec,
    methods: str | Sequence[str] = "all",
    rates: float | Sequence[float] = (0.25, 0.5),
    layers: str | Sequence[int] = "all",
    options: Mapping[str, Any] | Sequence[str] = (),
) -> list[Choice]:
    """Return every method at every rate, by rate.

    Args:
        methods: `all`, names separated by commas, or a sequence of names.
        rates: shares of tokens to remove, each once.
        layers: `all`, `global`, `window`, or block indices.
        options: of every one of the methods, such as `{"flatness": "mean"}`.

    Raises:
        UserError: an argument outside its range, or nothing that can be done.
    """
    from structsam.methods import choose_methods

    given = [rates] if isinstance(rates, (int, float, str)) else list(rates)
    for rate in given:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
            raise UserError(
                f"rate {rate!r} is no share of tokens to remove. Use numbers above 0 and below 1, "
                "such as `rates=0.25,0.5`"
            )
    if not given:
        raise UserError("no rate was given. Use numbers such as `rates=0.25,0.5`")
    numbers = [float(rate) for rate in dict.fromkeys(given)]
    where = layers if isinstance(layers, str) else tuple(layers)
    found = choices(spec, choose_methods(methods), numbers, [where], options=options)
    return sorted(found, key=lambda choice: numbers.index(_rate(choice)))


def spectrum_study(
    sam: Sam,
    images: Sequence[np.ndarray],
    merging: Sequence[Choice],
    graph: str = "affinity",
    say: Say = lambda text: None,
) -> list[SpectrumRow]:
    """Measure every merging on a model, which is stock afterwards.

    Args:
        sam: float32, in eval mode; earlier merging is removed.
        images: the encoder's inputs, float32 [1, 3, S, S] each.
        graph: key of `structsam.token_graphs.GRAPHS`.

    Returns:
        One row per choice, in order; those that cannot be carry a note.

    Raises:
        UserError: an argument outside its range, or nothing that could be measured.
    """
    import torch

    from structsam.apply import remove_merging
    from structsam.recording import block_inputs
    from structsam.token_graphs import edge_weight

    edge_weight(graph)  # refuses an unknown one
    if not images:
        raise UserError("no image was given. Give at least one")
    found: list[dict[int, list[BlockSpectrum]]] = [{} for _ in merging]
    try:
        with torch.inference_mode():
            for number, image in enumerate(images, 1):
                say(f"image {number} of {len(images)}: tokens of the stock model")
                inputs, _ = block_inputs(remove_merging(sam), torch.from_numpy(image))
                originals: dict[int, Tensor] = {}
                for choice, blocks in zip(merging, found, strict=True):
                    if choice.config is None:
                        continue
                    what = f"{choice.method} at rate {_rate(choice):g}"
                    say(f"image {number} of {len(images)}: {what}")
                    for block in _measure(sam, choice.config, graph, inputs, originals):
                        blocks.setdefault(block.index, []).append(block)
    finally:
        remove_merging(sam)
    return [
        SpectrumRow(
            choice.method,
            _rate(choice),
            tuple(map(_mean_of_images, blocks.values())),
            _note(choice),
        )
        for choice, blocks in zip(merging, found, strict=True)
    ]


def _rate(choice: Choice) -> float:
    assert not isinstance(choice.rate, tuple), "the study compares one rate for all blocks"
    return choice.rate


def _note(choice: Choice) -> str:
    """Say why a method cannot do it, for a row of the table; empty when it can."""
    from structsam.methods.base import RateAboveLimit

    if isinstance(choice.refusal, RateAboveLimit):
        return f"not available: cap {choice.refusal.limit:g}"
    return f"not available: {choice.refusal}" if choice.refusal else ""


def _measure(
    sam: Sam,
    config: MergeConfig,
    graph: str,
    inputs: Sequence[Tensor],
    originals: dict[int, Tensor],
) -> list[BlockSpectrum]:
    """Measure every merging block; `originals` keeps the unmerged spectra for the next merging."""
    from structsam.apply import apply_merging, merged_blocks
    from structsam.merging.geometry import WindowMaps
    from structsam.recording import record_plans
    from structsam.spectrum import (
        graph_spectrum,
        lifted_spectrum,
        slot_dissimilarity,
        spectral_distance,
    )

    apply_merging(sam, config)
    rows = []
    for index, (block, x) in enumerate(zip(merged_blocks(sam), inputs, strict=True)):
        if block.method is None:
            continue
        with record_plans(sam, last=index) as planned:  # whose attention nobody needs
            block(x)
        plan = planned[index].plan
        tokens = WindowMaps.of(x, block.window_size).cut(block.norm_before_attention(x))
        if index not in originals:
            originals[index] = graph_spectrum(tokens, graph)
        lifted = lifted_spectrum(tokens, plan.slot_of_token, plan.num_slots, graph)
        value = spectral_distance(originals[index], lifted).mean()
        unlike = slot_dissimilarity(tokens, plan.slot_of_token, plan.num_slots).mean()
        kind = "window" if block.window_size else "global"
        sizes = tokens.shape[1], plan.num_slots
        rows.append(BlockSpectrum(index, kind, *sizes, float(value), float(unlike)))
    return rows


def _mean_of_images(blocks: Sequence[BlockSpectrum]) -> BlockSpectrum:
    values: Any = [(block.discrepancy, block.dissimilarity) for block in blocks]
    discrepancy, dissimilarity = map(float, np.mean(values, 0))
    return replace(blocks[0], discrepancy=discrepancy, dissimilarity=dissimilarity)
