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
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.spectrum_report import (
    BlockSpectrum,
    SpectrumReport,
    SpectrumRow,
    save_report,
)
from structsam_export.plot_style import require_matplotlib
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor


Say = Callable[[str], None]


def run(
    model: str,
    images: Sequence[str | Path] = (),
    methods: str | Sequence[str] = "all",
    rates: float | Sequence[float] = (0.25, 0.5),
    layers: str | Sequence[int] = "all",
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    graph: str = "affinity",
    out: str | Path = "spectrum",
    say: Say = lambda text: None,
) -> SpectrumReport:
    """Study one model and write `spectrum.csv`, `spectrum.json` and `spectrum.png` into `out`.

    Args:
        model: key of `structsam.models.MODELS`.
        images: photos; the one that comes with the package when none is given.
        methods: `all`, names separated by commas, or a sequence of names.
        rates: shares of tokens to remove; a rate above a method's cap is a row that says so.
        layers: `all`, `global`, `window`, or block indices.
        checkpoint: official `.pth`, or `.safetensors` with the same keys.
        weights: `random` to do without a checkpoint.
        graph: key of `structsam.spectrum.GRAPHS`.
        say: told what is done, step by step.

    Raises:
        UserError: any input that cannot be used; nothing is written then.
    """
    from structsam.methods import choose_methods
    from structsam.models import model_spec
    from structsam_export.pipeline import SAMPLE_IMAGE

    spec = model_spec(model)
    require_matplotlib()
    photos = [Path(image).expanduser() for image in images] or [SAMPLE_IMAGE]
    pixels = [preprocess(read_image(photo), spec.preprocessing)[0] for photo in photos]
    names, numbers = choose_methods(methods), _checked_rates(rates)
    source = ModelSource(model, checkpoint, weights, seed)
    described = source.describe()
    say(f"loading {model}")
    sam = source.load()
    rows = spectrum_study(sam, pixels, names, numbers, layers, graph, say)
    say("writing the report")
    report = SpectrumReport(
        model=model,
        weights=described.title,
        graph=graph,
        layers=layers if isinstance(layers, str) else ",".join(map(str, layers)),
        images=tuple(photo.name for photo in photos),
        rows=tuple(rows),
    )
    return replace(report, files=save_report(report, Path(out)))


def _checked_rates(rates: float | Sequence[float]) -> list[float]:
    """Return the rates, each once; caps are the methods' own business."""
    given = [rates] if isinstance(rates, (int, float, str)) else list(rates)
    for rate in given:
        if not isinstance(rate, (int, float)) or not 0 < rate < 1:
            raise UserError(
                f"rate {rate!r} is no share of tokens to remove. Use numbers above 0 and below 1, "
                "such as `rates=0.25,0.5`"
            )
    if not given:
        raise UserError("no rate was given. Use numbers such as `rates=0.25,0.5`")
    return [float(rate) for rate in dict.fromkeys(given)]


def spectrum_study(
    sam: Sam,
    images: Sequence[np.ndarray],
    methods: Sequence[str],
    rates: Sequence[float],
    layers: str | Sequence[int] = "all",
    graph: str = "affinity",
    say: Say = lambda text: None,
    options: Mapping[str, Any] | None = None,
) -> list[SpectrumRow]:
    """Measure every method at every rate on a model, which is stock afterwards.

    Args:
        sam: float32, in eval mode; earlier merging is removed.
        images: the encoder's inputs, float32 [1, 3, S, S] each.
        methods: keys of `structsam.methods.METHODS`.
        rates: shares of tokens to remove.
        layers: `all`, `global`, `window`, or block indices.
        graph: key of `structsam.spectrum.GRAPHS`.
        options: of every one of the methods, such as `{"flatness": "mean"}`.

    Returns:
        One row per rate and method, by rate; those that cannot be carry a note.

    Raises:
        UserError: an argument outside its range, or nothing that could be measured.
    """
    import torch

    from structsam.apply import remove_merging
    from structsam.recording import block_inputs
    from structsam.spectrum import GRAPHS

    if graph not in GRAPHS:
        raise UserError(f"unknown graph {graph!r}. Choose one of: {', '.join(GRAPHS)}")
    if not images:
        raise UserError("no image was given. Give at least one")
    pairs = [(method, rate) for rate in rates for method in methods]
    notes = _notes(sam, pairs, layers, options)
    found: dict[tuple[str, float], dict[int, list[BlockSpectrum]]] = {pair: {} for pair in pairs}
    try:
        with torch.inference_mode():
            for number, image in enumerate(images, 1):
                say(f"image {number} of {len(images)}: tokens of the stock model")
                inputs, _ = block_inputs(remove_merging(sam), torch.from_numpy(image))
                originals: dict[int, Tensor] = {}
                for pair in pairs:
                    if pair in notes:
                        continue
                    say(f"image {number} of {len(images)}: {pair[0]} at rate {pair[1]:g}")
                    measured = _measure(sam, pair, layers, options, graph, inputs, originals)
                    for block in measured:
                        found[pair].setdefault(block.index, []).append(block)
    finally:
        remove_merging(sam)
    return [
        SpectrumRow(
            method,
            rate,
            tuple(_mean_of_images(blocks) for blocks in found[method, rate].values()),
            notes.get((method, rate), ""),
        )
        for method, rate in pairs
    ]


def _notes(
    sam: Sam,
    pairs: Sequence[tuple[str, float]],
    layers: str | Sequence[int],
    options: Mapping[str, Any] | None,
) -> dict[tuple[str, float], str]:
    """Say which pairs cannot be and why, before any work; leaves the model stock.

    Raises:
        UserError: none of them can be.
    """
    from structsam.apply import apply_merging, remove_merging
    from structsam.methods.base import RateAboveLimit

    notes: dict[tuple[str, float], str] = {}
    refusals: list[str] = []
    for method, rate in pairs:
        try:
            apply_merging(sam, method=method, rate=rate, layers=layers, options=options)
        except RateAboveLimit as above:
            notes[method, rate] = f"not available: cap {above.limit:g}"
            refusals.append(f"{method} merges at most {above.limit:g} of the tokens, not {rate:g}")
        except UserError as error:
            notes[method, rate] = f"not available: {error}"
            refusals.insert(0, str(error))  # it says more than a cap
    remove_merging(sam)
    if len(notes) == len(pairs):
        raise UserError(refusals[0] if refusals else "no method and rate was given")
    return notes


def _measure(
    sam: Sam,
    pair: tuple[str, float],
    layers: str | Sequence[int],
    options: Mapping[str, Any] | None,
    graph: str,
    inputs: Sequence[Tensor],
    originals: dict[int, Tensor],
) -> list[BlockSpectrum]:
    """Measure every merging block; `originals` keeps the unmerged spectra for the next pair."""
    from structsam.apply import apply_merging, merged_blocks
    from structsam.merging.geometry import WindowMaps
    from structsam.recording import record_plans
    from structsam.spectrum import (
        graph_spectrum,
        lifted_spectrum,
        slot_dissimilarity,
        spectral_distance,
    )

    method, rate = pair
    apply_merging(sam, method=method, rate=rate, layers=layers, options=options)
    rows = []
    for index, (block, x) in enumerate(zip(merged_blocks(sam), inputs, strict=True)):
        if block.method is None:
            continue
        with record_plans(sam, last=index) as planned:  # whose attention nobody needs
            block(x)
        plan = planned[index].plan
        tokens = WindowMaps.of(x, block.window_size).cut(block.norm1(x))
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
