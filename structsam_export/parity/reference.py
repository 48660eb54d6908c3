"""What the merged PyTorch encoder in FP32 and the stock decoder compute on a sample image.

Computing needs torch and the weights; the result is kept in the bundle, so that parity can be
checked later on a machine that has neither.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.features import Features, from_arrays, to_arrays
from structsam_export.bundle.manifest import HQ_FEATURES, HQ_MASKS, IMAGE_EMBEDDINGS, PROMPT_BOX
from structsam_export.predict.hq_masks import every_mask
from structsam_export.predict.preprocessing import ImageGeometry, Photo

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

_GRID = 4  # points per side
_BOXES = 3  # boxes per side
_PAD = (0.0, 0.0)


@dataclass(frozen=True)
class Reference:
    """Expected results for one image.

    Args:
        photo: the photo, as it was read and preprocessed.
        features: what the decoder takes, float32: `image_embeddings` [1, 256, h, w] and others.
        plans: block index -> (slot_of_token [B', N], anchor_of_slot [B', M]).
        prompt_box: float32 [1, 4] in input pixels, for an encoder that takes one; else None.
        energies: block index -> gradient energy [h, w] float32 of a few blocks, for the report.
        masks: bool [Q, 4, 4h, 4w], logits above 0 for the Q prompts of `prompt_grid`; of SAM-HQ
            [Q, 5, ...], see `every_mask`.
        scores: float32 [Q, 4], the predicted IoU of every mask.
    """

    photo: Photo
    features: Features
    plans: dict[int, tuple[np.ndarray, np.ndarray]]
    energies: dict[int, np.ndarray]
    masks: np.ndarray
    scores: np.ndarray
    prompt_box: np.ndarray | None = None

    @property
    def prompt_feed(self) -> dict[str, np.ndarray]:
        """What the encoder is fed beside the image."""
        return {} if self.prompt_box is None else {PROMPT_BOX: self.prompt_box}

    @property
    def embedding(self) -> np.ndarray:
        """The image embedding, float32 [1, 256, h, w]."""
        return self.features[IMAGE_EMBEDDINGS]

    @property
    def image(self) -> str:
        """Name of the photo's file."""
        return self.photo.path.name

    def save(self, folder: Path) -> list[Path]:
        """Write the photo and the numbers into `folder`; return the two files."""
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / self.image
        if image.exists():
            raise UserError(
                f"two sample images are named {image.name}. Rename one: the bundle keeps both"
            )
        shutil.copyfile(self.photo.path, image)
        numbers = image.with_name(image.name + ".npz")
        arrays: dict[str, Any] = {
            **to_arrays(self.features),
            "scores": self.scores,
            "masks": np.packbits(self.masks),
            "masks_shape": np.array(self.masks.shape),
        }
        if self.prompt_box is not None:
            arrays[PROMPT_BOX] = self.prompt_box
        for index, (slots, anchors) in self.plans.items():
            arrays[f"slot_of_token.{index}"] = slots.astype(np.int16)
            arrays[f"anchor_of_slot.{index}"] = anchors.astype(np.int16)
        for index, energy in self.energies.items():
            arrays[f"energy.{index}"] = energy.astype(np.float16)
        np.savez_compressed(numbers, **arrays)
        return [image, numbers]


def load_reference(photo: Photo) -> Reference:
    """Read what `Reference.save` wrote beside the photo."""
    with np.load(photo.path.with_name(photo.path.name + ".npz")) as arrays:
        blocks = [int(k.rpartition(".")[2]) for k in arrays if k.startswith("slot_of_token.")]
        shape = tuple(arrays["masks_shape"])
        bits = np.unpackbits(arrays["masks"], count=int(np.prod(shape)))
        return Reference(
            photo=photo,
            features=from_arrays(arrays),
            plans={
                index: (
                    arrays[f"slot_of_token.{index}"].astype(np.int64),
                    arrays[f"anchor_of_slot.{index}"].astype(np.int64),
                )
                for index in blocks
            },
            energies={
                int(k.rpartition(".")[2]): arrays[k].astype(np.float32)
                for k in arrays
                if k.startswith("energy.")
            },
            masks=bits.reshape(shape).astype(bool),
            scores=arrays["scores"],
            prompt_box=arrays.get(PROMPT_BOX),
        )


def prompt_grid(geometry: ImageGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the fixed prompts of parity: 16 points, then 9 boxes, over the photo's area.

    Returns:
        Coordinates float32 [25, 2, 2] in input pixels and labels float32 [25, 2]: a point with
        one padding point, or the two corners of a box.
    """
    height, width = geometry.input_size
    coords, labels = [], []
    for row in range(_GRID):
        for column in range(_GRID):
            center = ((column + 0.5) * width / _GRID, (row + 0.5) * height / _GRID)
            coords.append((center, _PAD))
            labels.append((1, -1))
    for row in range(_BOXES):
        for column in range(_BOXES):
            x, y = (column + 0.5) * width / _BOXES, (row + 0.5) * height / _BOXES
            half_w, half_h = 0.45 * width / _BOXES, 0.45 * height / _BOXES
            coords.append(((x - half_w, y - half_h), (x + half_w, y + half_h)))
            labels.append((2, 3))
    return np.array(coords, np.float32), np.array(labels, np.float32)


def decoder_feed(
    features: Features, coords: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a bundle's decoder's inputs for prompts of `prompt_grid`; no masks as prompts.

    Args:
        features: as of `Reference`.
        coords: float32 [P, K, 2] in input pixels.
        labels: float32 [P, K].
    """
    height, width = (4 * side for side in features[IMAGE_EMBEDDINGS].shape[-2:])
    return {
        **features,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((len(coords), 1, height, width), np.float32),
        "has_mask_input": np.zeros(len(coords), np.float32),
    }


def decode(
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    features: Features,
    coords: np.ndarray,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks and scores, as of `Reference`, from a bundle's decoder, a few prompts a call."""
    masks, scores = [], []
    for start in range(0, len(coords), 5):
        some = slice(start, start + 5)
        outputs = run(decoder_feed(features, coords[some], labels[some]))
        masks.append(every_mask(outputs) > 0)
        scores.append(outputs["iou_predictions"])
    return np.concatenate(masks), np.concatenate(scores)


def no_masks() -> tuple[np.ndarray, np.ndarray]:
    """Return masks and scores of no prompts, for an encoder alone."""
    return np.zeros((0, 4, 1, 1), bool), np.zeros((0, 4), np.float32)


def prompt_box_of(geometry: ImageGeometry) -> np.ndarray:
    """Return parity's prompt box: the middle of the photo, half as wide and high, [1, 4]."""
    height, width = geometry.input_size
    return np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]], np.float32)


def compute_reference(sam: Sam, photo: Photo) -> Reference:
    """Run the merged encoder in FP32 and the stock prompt encoder and mask decoder.

    Args:
        sam: a merged model from `structsam.apply_merging`, float32.
    """
    import torch

    from structsam.recording import record_plans
    from structsam_export.graph.modules import EncoderModule

    module = EncoderModule(sam)
    inputs = [photo.pixels]
    if module.takes_box:
        inputs.append(prompt_box_of(photo.geometry))
    with torch.inference_mode(), record_plans(sam) as planned:
        features = module.features(*map(torch.from_numpy, inputs))
        masks, scores = stock_masks(sam, features, *prompt_grid(photo.geometry))
    energies = {index: planned[index].token_energy for index in picture_blocks(sam)}
    return Reference(
        photo=photo,
        features={name: map_.numpy() for name, map_ in features.items()},
        plans={
            index: (merging.plan.slot_of_token.numpy(), merging.plan.anchor_of_slot.numpy())
            for index, merging in planned.items()
        },
        energies={i: energy[0].numpy() for i, energy in energies.items() if energy is not None},
        masks=masks,
        scores=scores,
        prompt_box=inputs[1] if module.takes_box else None,
    )


def picture_blocks(sam: Sam) -> list[int]:
    """Choose the merging blocks to draw: the first window one, the first and last global one."""
    from structsam.apply import merged_blocks

    merging = [(i, b.window_size) for i, b in enumerate(merged_blocks(sam)) if b.plans]
    window = [i for i, size in merging if size][:1]
    whole = [i for i, size in merging if not size]
    return sorted({*window, *whole[:1], *whole[-1:]})


def stock_masks(
    sam: Sam, features: Mapping[str, Tensor], coords: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Masks and scores, as of `Reference`, of every prompt from the stock modules.

    Of a model without a decoder there are none: Q is 0.
    """
    import torch

    if sam.mask_decoder is None:
        return no_masks()
    more = {name: map_ for name, map_ in features.items() if name != IMAGE_EMBEDDINGS}
    masks, scores = [], []
    for xy, kind in zip(coords, labels, strict=True):
        if kind[0] == 2:
            points, boxes = None, torch.from_numpy(xy.reshape(1, 4))
        else:
            points = (torch.from_numpy(xy[None, :1]), torch.from_numpy(kind[None, :1]))
            boxes = None  # the stock prompt encoder pads the point itself
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        logits, quality = sam.mask_decoder.predict_masks(
            image_embeddings=features[IMAGE_EMBEDDINGS],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            **more,
        )
        drawn = {"low_res_masks": logits[:, :4].numpy(), "iou_predictions": quality.numpy()}
        if HQ_FEATURES in more:
            drawn[HQ_MASKS] = logits[:, 4:].numpy()
        masks.append(every_mask(drawn)[0] > 0)
        scores.append(quality[0].numpy())
    return np.stack(masks), np.stack(scores)
