"""SAM-HQ (Ke et al., 2023, arXiv 2306.01567): SAM with finer masks, from one more token.

The encoder is SAM's, and gives the tokens after its global blocks beside the embedding. Those after
the first of them, the early features, still have details: transposed convolutions bring them and
the embedding to four times the grid, and their sum, the HQ features, meets the decoder's own
upscaled map. One more output token draws a mask on that, which is added to SAM's mask. Modules have
the names of the authors' package segment-anything-hq, so that its checkpoints load as they are, and
its `SamPredictor` takes these models. Written from the paper and those names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from structsam.models.resize_weights import EmbeddingResize


class HqImageEncoder(ImageEncoderViT):
    """SAM's image encoder, which also returns what its global blocks give."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode [B, 3, S, S].

        Returns:
            The embedding [B, 256, h, w], and the tokens after every global block, [B, h, w, C]
            each. Where the embedding is resized, so are they.
        """
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        after_global = []
        for block in self.blocks:
            x = block(x)
            if block.window_size == 0:
                after_global.append(x)
        last = self.neck[-1]
        if isinstance(last, EmbeddingResize):
            after_global = [_resized(tokens, last) for tokens in after_global]
        return self.neck(x.permute(0, 3, 1, 2)), after_global


def _resized(tokens: Tensor, resize: EmbeddingResize) -> Tensor:
    return resize(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).to(tokens.dtype)


class HqMaskDecoder(MaskDecoder):
    """SAM's mask decoder with the HQ token, and what makes the HQ features.

    Args:
        vit_dim: channels of the encoder's tokens.
        others: as of `MaskDecoder`.
    """

    def __init__(self, *, transformer_dim: int, vit_dim: int, **others: Any) -> None:
        super().__init__(transformer_dim=transformer_dim, **others)
        quarter, eighth = transformer_dim // 4, transformer_dim // 8
        self.hf_token = nn.Embedding(1, transformer_dim)
        self.hf_mlp = MLP(transformer_dim, transformer_dim, eighth, 3)
        self.compress_vit_feat = _four_times(vit_dim, transformer_dim, eighth)
        self.embedding_encoder = _four_times(transformer_dim, quarter, eighth)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(eighth, quarter, 3, padding=1),
            LayerNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, eighth, 3, padding=1),
        )

    def hq_features(self, image_embeddings: Tensor, early: Tensor) -> Tensor:
        """Return [B, 32, 4h, 4w] of an embedding [B, 256, h, w] and early features [B, h, w, C]."""
        early_map: Tensor = self.compress_vit_feat(early.permute(0, 3, 1, 2))
        return self.embedding_encoder(image_embeddings) + early_map

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        hq_token_only: bool,
        interm_embeddings: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Predict one mask for every prompt on one image.

        Args:
            multimask_output: add the best of SAM's three masks instead of its single one.
            hq_token_only: add none of SAM's.
            interm_embeddings: what the encoder gave beside the embedding.
            others: as of `MaskDecoder`.

        Returns:
            Logits [P, 1, 4h, 4w], and the predicted IoU [P, 1] of SAM's mask.
        """
        masks, scores = self.predict_masks(
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            self.hq_features(image_embeddings, interm_embeddings[0]),
        )
        every = torch.arange(len(masks), device=masks.device)
        best = 1 + scores[:, 1:].argmax(1) if multimask_output else 0 * every
        found = masks[:, -1] if hq_token_only else masks[every, best] + masks[:, -1]
        return found.unsqueeze(1), scores[every, best].unsqueeze(1)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        hq_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits [P, 5, 4h, 4w], SAM's four and the HQ token's, and SAM's scores [P, 4].

        Args:
            hq_features: [1, 32, 4h, 4w] of `hq_features`.
        """
        assert hq_features is not None
        count = len(sparse_prompt_embeddings)
        tables = self.iou_token, self.mask_tokens, self.hf_token
        own = torch.cat([table.weight for table in tables]).expand(count, -1, -1)
        tokens = torch.cat([own, sparse_prompt_embeddings], 1)
        source = image_embeddings + dense_prompt_embeddings
        out_tokens, image_tokens = self.transformer(source, image_pe, tokens)
        upscaled = self.output_upscaling(image_tokens.transpose(1, 2).reshape(source.shape))
        heads = [*self.output_hypernetworks_mlps, self.hf_mlp]
        weights = torch.stack([mlp(out_tokens[:, 1 + i]) for i, mlp in enumerate(heads)], 1)
        hq_map = self.embedding_maskfeature(upscaled) + hq_features
        masks = [
            torch.einsum("pkc,pchw->pkhw", some, map_)
            for some, map_ in ((weights[:, :-1], upscaled), (weights[:, -1:], hq_map))
        ]
        return torch.cat(masks, 1), self.iou_prediction_head(out_tokens[:, 0])


def _four_times(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Bring a map to four times its sides, in two steps."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, hidden, 2, stride=2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, out, 2, stride=2),
    )
