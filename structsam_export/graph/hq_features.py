"""SAM-HQ's features as the last step of the encoder's graph.

They do not depend on a prompt, so that the encoder computes them once, and the decoder takes 32
channels instead of the early features' 768 and more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structsam_export.graph.mixed_precision import to_mixed_fp16


class HqFeatures(nn.Module):
    """Embedding [B, 256, h, w] and early features [B, h, w, C] -> float32 [B, 32, 4h, 4w].

    Args:
        decoder: a mask decoder of SAM-HQ, which has the layers.
    """

    def __init__(self, decoder: Any, precision: str = "fp32") -> None:
        super().__init__()
        of_embedding, of_early = decoder.embedding_encoder, decoder.compress_vit_feat
        if precision == "fp16":
            of_embedding, of_early = to_mixed_fp16(of_embedding), to_mixed_fp16(of_early)
        self.of_embedding: nn.Sequential = of_embedding
        self.of_early: nn.Sequential = of_early
        self.channels: int = of_embedding[-1].out_channels
        self.kind: torch.dtype = of_embedding[0].weight.dtype

    def forward(self, embedding: Tensor, early: Tensor) -> Tensor:
        """Bring both to four times their sides, and add them."""
        early_map: Tensor = self.of_early(early.permute(0, 3, 1, 2).to(self.kind))
        return (self.of_embedding(embedding.to(self.kind)) + early_map).float()


def hq_features_of(model: nn.Module, precision: str) -> HqFeatures | None:
    """Return the layers of a model of SAM-HQ; None for any other model, or an encoder alone."""
    decoder = getattr(model, "mask_decoder", None)
    return HqFeatures(decoder, precision) if hasattr(decoder, "compress_vit_feat") else None
