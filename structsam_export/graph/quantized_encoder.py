"""An encoder in INT8: its FP32 graph is calibrated on photos, then quantised as FP32 or FP16."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from structsam_export.bundle.manifest import Part
from structsam_export.graph.activation_ranges import measure_ranges
from structsam_export.graph.exporter import export_encoder
from structsam_export.graph.modules import EncoderModule
from structsam_export.graph.precisions import float_type, quantizes_attention
from structsam_export.graph.quantize import quantize_linear_layers


def export_quantized_encoder(
    model: nn.Module,
    precision: str,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    file: str,
    batch: int = 1,
    plan_outputs: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Part:
    """Write a merged encoder's quantised ONNX into `folder` and return its contract.

    Args:
        model: a merged `Sam`, or its image encoder.
        precision: a quantised one of `PRECISIONS`.
        feeds: the encoder's inputs on calibration photos, one each; see `measure_ranges`.
        batch: images of one call; every photo is repeated to fill it.
        say: is told every step.

    Raises:
        UserError: no photo, or activations that are no numbers.
    """
    with tempfile.TemporaryDirectory(prefix=".calibration-", dir=folder) as scratch:
        source = Path(scratch) / "fp32"
        source.mkdir()
        part = export_encoder(EncoderModule(model, "fp32", plan_outputs), source, file, batch)
        say("measuring activations on the calibration photos")
        many = ({n: np.repeat(array, batch, 0) for n, array in feed.items()} for feed in feeds)
        ranges = measure_ranges(source / file, many, quantizes_attention(precision))
        if (rest := float_type(precision)) != "fp32":
            say("exporting the encoder to ONNX once more, typed as FP16")
            source = Path(scratch) / rest
            source.mkdir()
            part = export_encoder(EncoderModule(model, rest, plan_outputs), source, file, batch)
        say("quantising")
        quantize_linear_layers(source / file, folder / file, ranges)
    return replace(part, file=file)
