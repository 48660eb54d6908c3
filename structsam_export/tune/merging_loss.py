"""How far an encoder with few merged blocks is from the unmerged one of its size, cheaply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.mask_iou import mask_iou
from structsam_export.bundle.manifest import HQ_FEATURES, IMAGE_EMBEDDINGS
from structsam_export.predict.hq_masks import every_mask
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess
from structsam_export.tune.sure_objects import grid_points

if TYPE_CHECKING:
    from torch import Tensor

    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

_POINTS = 2  # prompts per side


@dataclass(frozen=True)
class Loss:
    """Distance from the unmerged model, 0 for none.

    Args:
        embedding: relative L2 of the image embedding.
        masks: 1 - IoU of the decoder's masks, mean over point prompts and outputs.
    """

    embedding: float
    masks: float

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.embedding + self.masks


class LossMeter:
    """Measures loss: runs the encoder from any block on, and compares with the unmerged one."""

    def __init__(self, sam: Any, spec: ModelSpec) -> None:
        from structsam_export.graph.hq_features import hq_features_of
        from structsam_export.graph.modules import DecoderModule

        self._hq, self._early_block = (
            hq_features_of(sam, "fp32"),
            min(spec.global_blocks, default=0),
        )
        self.sam, self.preprocessing, self.side = sam, spec.preprocessing, spec.embedding_grid[0]
        self.decoder = DecoderModule(sam)
        self._photo: Path | None = None
        self._inputs: list[Tensor] = []
        self._embedding: Tensor | None = None
        self._masks: np.ndarray | None = None
        self._prompts: tuple[Tensor, ...] = ()

    def look_at(self, photo: Path) -> None:
        """Keep every block's input, the embedding and the masks of the unmerged model."""
        import torch

        from structsam.recording import block_inputs

        if photo == self._photo:
            return
        pixels, geometry = preprocess(read_image(photo), self.preprocessing)
        height, width = geometry.input_size
        points = grid_points(_POINTS) * [width, height]
        count, side = len(points), 4 * self.side
        self._prompts = (
            torch.tensor(np.stack([points, np.zeros_like(points)], 1), dtype=torch.float32),
            torch.tensor([[1.0, -1.0]] * count),
            torch.zeros(count, 1, side, side),
            torch.zeros(count),
        )
        encoder = self._merged(None)
        with torch.inference_mode():
            self._inputs, self._embedding = block_inputs(encoder, torch.from_numpy(pixels))
            self._masks = self._masks_of(self._embedding, self._early(self._inputs))
        self._photo = photo

    def losses(self, config: MergeConfig, photo: Path, start: int = 0) -> Loss:
        """Compare a merged encoder, from block `start` on, with the unmerged one."""
        import torch

        self.look_at(photo)
        encoder = self._merged(config)
        with torch.inference_mode():
            seen = self._inputs[: start + 1]
            for block in encoder.blocks[start:]:
                seen.append(block(seen[-1]))
            embedding = encoder.neck(seen[-1].permute(0, 3, 1, 2))
            assert self._embedding is not None and self._masks is not None
            error = (embedding - self._embedding).norm() / self._embedding.norm()
            iou = mask_iou(self._masks_of(embedding, self._early(seen)), self._masks)
        return Loss(float(error), float(1 - iou.mean()))

    def _merged(self, config: MergeConfig | None) -> Any:
        from structsam.apply import apply_merging
        from structsam.config import MergeConfig

        return apply_merging(self.sam, config or MergeConfig(rate=0.0)).image_encoder

    def _early(self, tokens: Sequence[Tensor]) -> Tensor:
        """What the first global block gives, of the tokens that enter every block."""
        return tokens[min(self._early_block + 1, len(tokens) - 1)]

    def _masks_of(self, embedding: Tensor, early: Tensor) -> np.ndarray:
        """Masks bool [P, 4, 4h, 4w] at the fixed points; of SAM-HQ as of `every_mask`."""
        features = {IMAGE_EMBEDDINGS: embedding}
        if self._hq is not None:
            features[HQ_FEATURES] = self._hq(embedding, early)
        outputs = self.decoder.outputs(features, self._prompts)
        return every_mask({name: value.numpy() for name, value in outputs.items()}) > 0
