"""Calibration of an INT8 encoder on photos, and what INT8 then costs on photos held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.models import Preprocessing
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PROMPT_BOX
from structsam_export.parity.compare import judged_iou
from structsam_export.parity.reference import decode, prompt_box_of, prompt_grid
from structsam_export.predict.preprocessing import Photo, read_photo
from structsam_export.runtimes import BACKENDS, RunOptions

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

#: `count(what, done, total)`.
Count = Callable[[str, int, int], None]


def encoder_feeds(
    photos: Sequence[Path], how: Preprocessing, takes_box: bool, what: str, count: Count
) -> Iterator[tuple[Photo, dict[str, np.ndarray]]]:
    """Yield every photo and the encoder's inputs on it, read when they are asked for.

    Args:
        takes_box: the encoder also takes a prompt's box; it is the middle of the photo.
        what: is done with them, for `count`.
    """
    count(what, 0, len(photos))
    for done, path in enumerate(photos, 1):
        photo = read_photo(path, how)
        feed = {"image": photo.pixels}
        if takes_box:
            feed[PROMPT_BOX] = prompt_box_of(photo.geometry)
        yield photo, feed
        count(what, done, len(photos))


@dataclass(frozen=True)
class QuantizationCost:
    """IoU of masks from an INT8 encoder with those from the same merged encoder in FP32.

    Args:
        photos: how many, none of which was calibrated on.
        masks: how many masks were compared; the prompts and the decoder are those of parity.
    """

    photos: int
    masks: int
    mean_mask_iou: float
    min_mask_iou: float

    def __str__(self) -> str:
        return (
            f"INT8 against FP32 on {self.photos} held-out photos: mask IoU mean "
            f"{self.mean_mask_iou:.4f}, minimum {self.min_mask_iou:.4f}"
        )


def cost_of(bundle: Bundle) -> str:
    """Say what INT8 costs in this bundle, as it was measured at export; empty without INT8."""
    cost = bundle.manifest.get("calibration", {}).get("cost")  # encoders of `bench` have none
    return str(QuantizationCost(**cost)) if cost else ""


def quantization_cost(
    bundle: Bundle, sam: Sam, photos: Sequence[Path], count: Count
) -> QuantizationCost:
    """Compare masks of a bundle's INT8 encoder in ONNX Runtime with those of PyTorch in FP32.

    Args:
        sam: the merged model, float32.
        photos: none of those that were calibrated on. The bundle's decoder draws both masks.
    """
    import torch

    from structsam_export.graph.modules import EncoderModule

    exact = EncoderModule(sam)
    backend, ious = BACKENDS["onnxruntime"], list[np.ndarray]()
    with (
        backend.runner(bundle, "encoder", RunOptions()) as encoder,
        backend.runner(bundle, "decoder", RunOptions()) as decoder,
        torch.inference_mode(),
    ):
        how, what = bundle.preprocessing, "comparing INT8 with FP32"
        for photo, feed in encoder_feeds(photos, how, exact.takes_box, what, count):
            found = exact.features(*map(torch.from_numpy, feed.values()))
            features = {name: map_.numpy() for name, map_ in found.items()}
            prompts = prompt_grid(photo.geometry)
            both = features, encoder.run(feed)
            masks = [decode(decoder.run, each, *prompts)[0] for each in both]
            ious.append(judged_iou(*masks))
    every = np.concatenate(ious)
    return QuantizationCost(len(photos), every.size, float(every.mean()), float(every.min()))
