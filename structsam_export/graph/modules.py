"""The two networks of a bundle as torch modules with the exact inputs and outputs of the ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from structsam.apply import image_encoder_of, set_prompt_box
from structsam.models.resize_weights import embedding_grid
from structsam.recording import record_plans
from structsam_export.bundle.manifest import (
    HQ_FEATURES,
    HQ_MASKS,
    IMAGE_EMBEDDINGS,
    PLAN_TENSORS,
    PROMPT_BOX,
    Part,
    TensorSpec,
)
from structsam_export.graph.hq_features import hq_features_of
from structsam_export.graph.mixed_precision import to_mixed_fp16

#: (minimum, optimum, maximum) of the decoder's dynamic sizes: P prompts of K points each.
DECODER_PROFILE = {"P": (1, 1, 64), "K": (1, 2, 16)}


class EncoderModule(nn.Module):
    """Image encoder: `image` [B, 3, S, S] float32 -> `image_embeddings` [B, 256, h, w].

    h and w are S/16, or with an embedding that is upsampled the sides of the trained grid.

    B is 1 in every bundle; `bench` also exports others. A prompt-aware encoder has a second input,
    `prompt_box` [B, 4] float32: x0, y0, x1, y1 in
    pixels of the first.

    That of SAM-HQ also returns `hq_features` [B, 32, 4h, 4w].

    After them it returns, for every block that plans, slot_of_token [B', N] and
    anchor_of_slot [B', M], int32: what parity compares and follows. Windows that merge in tiers
    keep different numbers of tokens; M is the largest, and slots that a window has not are 0.

    Args:
        model: a `Sam`, or its image encoder, merged or not.
        plan_outputs: return the plans; else what the decoder takes is the only output.
    """

    def __init__(
        self, model: nn.Module, precision: str = "fp32", plan_outputs: bool = True
    ) -> None:
        super().__init__()
        encoder = image_encoder_of(model)
        self.plan_outputs = plan_outputs
        self.encoder = to_mixed_fp16(encoder) if precision == "fp16" else encoder
        self.half_inside = precision == "fp16"
        self.hq = hq_features_of(model, precision)
        self.merging = {
            index: block
            for index, block in enumerate(self.encoder.blocks)
            if getattr(block, "plans", False)
        }

    @property
    def takes_box(self) -> bool:
        """Whether the encoder has the input `prompt_box`."""
        return any(block.prompt for block in self.merging.values())

    def forward(self, image: Tensor, prompt_box: Tensor | None = None) -> tuple[Tensor, ...]:
        """Encode; see the class."""
        if not self.plan_outputs:
            return self.encode(image, prompt_box)
        with record_plans(self.encoder) as planned:
            features = self.encode(image, prompt_box)
        plans = [planned[index].plan for index in self.merging]
        return *features, *(getattr(plan, name).int() for plan in plans for name in PLAN_TENSORS)

    def features(self, image: Tensor, prompt_box: Tensor | None = None) -> dict[str, Tensor]:
        """Return what the decoder takes, by name, float32.

        `image_embeddings` [B, 256, h, w]; of SAM-HQ also `hq_features` [B, 32, 4h, 4w].
        """
        names = (IMAGE_EMBEDDINGS, HQ_FEATURES) if self.hq else (IMAGE_EMBEDDINGS,)
        return dict(zip(names, self.encode(image, prompt_box), strict=True))

    def encode(self, image: Tensor, prompt_box: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return what `features` names, in that order, float32."""
        prompts = {block.prompt for block in self.merging.values() if block.prompt}
        before = {prompt: prompt.tokens for prompt in prompts}
        if prompt_box is not None:
            set_prompt_box(self.encoder, prompt_box)
        try:
            found = self.encoder(image.half() if self.half_inside else image)
        finally:
            for prompt, tokens in before.items():  # a box belongs to this call alone
                prompt.tokens = tokens
        if self.hq is None:
            return (found.float(),)
        embedding, (early, *_) = found
        return embedding.float(), self.hq(embedding, early)

    def part(self, file: str, batch: int = 1) -> Part:
        """Return the encoder's contract for so many images a call."""
        size = self.encoder.img_size
        height, width = embedding_grid(self.encoder)
        channels = self.encoder.neck[0].out_channels
        outputs = [TensorSpec(IMAGE_EMBEDDINGS, (batch, channels, height, width), "float32")]
        if self.hq:
            shape = (batch, self.hq.channels, 4 * height, 4 * width)
            outputs.append(TensorSpec(HQ_FEATURES, shape, "float32"))
        inputs = [TensorSpec("image", (batch, 3, size, size), "float32")]
        if self.takes_box:
            inputs.append(TensorSpec(PROMPT_BOX, (batch, 4), "float32"))
        return Part(
            file,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            plan_outputs=tuple(self._plan_specs(batch)) if self.plan_outputs else (),
        )

    def _plan_specs(self, batch: int) -> Iterator[TensorSpec]:
        for index, block in self.merging.items():
            methods = [tier.method for tier in block.tiers]
            maps = batch * sum(tier.windows for tier in block.tiers)
            sides = methods[0].num_tokens, max(method.num_slots for method in methods)
            for name, side in zip(PLAN_TENSORS, sides, strict=True):
                yield TensorSpec(f"{name}.{index}", (maps, side), "int32")


class DecoderModule(nn.Module):
    """Prompt encoder and mask decoder for P prompts of K points on one image.

    Equal to the stock modules, re-expressed where they do not export: no boolean indexing, the
    image embedding is broadcast instead of repeated, and the positional encoding is two products
    in float32 instead of a matmul. Masks are not enlarged here (see `preprocessing`).
    """

    def __init__(self, sam: Sam, precision: str = "fp32") -> None:
        super().__init__()
        prompt, decoder = sam.prompt_encoder, sam.mask_decoder
        if precision == "fp16":
            prompt, decoder = to_mixed_fp16(prompt), to_mixed_fp16(decoder)
        self.prompt, self.decoder = prompt, decoder
        self.half_inside = precision == "fp16"
        self.is_hq = hasattr(decoder, "hf_token")
        exact = sam.prompt_encoder
        # annotations tell the type checker what nn.Module hides
        self.gaussian: Tensor
        self.label_embeddings: Tensor
        self.image_pe: Tensor
        gaussian = exact.pe_layer.positional_encoding_gaussian_matrix
        labels = [exact.not_a_point_embed, *exact.point_embeddings]  # labels -1, 0, 1, 2, 3
        self.register_buffer("gaussian", gaussian.detach().float().clone())
        self.register_buffer("label_embeddings", torch.cat([e.weight for e in labels]).detach())
        self.register_buffer("image_pe", exact.get_dense_pe().detach())
        self.input_size: tuple[int, int] = exact.input_image_size
        self.embedding_size: tuple[int, int] = exact.image_embedding_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        hq_features: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return `low_res_masks` [P, 4, 4h, 4w] logits and `iou_predictions` [P, 4].

        With SAM-HQ these are SAM's masks, and `hq_masks` [P, 1, 4h, 4w] follow, to be added.

        Args:
            image_embeddings: [1, 256, h, w].
            point_coords: [P, K, 2], (x, y) in pixels of the encoder's input.
            point_labels: [P, K]: 1 object, 0 background, 2 and 3 box corners, -1 padding.
            mask_input: [P, 1, 4h, 4w] logits of an earlier prediction.
            has_mask_input: [P], 1 where `mask_input` counts, else 0.
            hq_features: [1, 32, 4h, 4w] of a SAM-HQ's encoder.
        """
        kind = torch.float16 if self.half_inside else torch.float32
        tokens = self._tokens(point_coords, point_labels).to(kind)  # [P, T + K, 256]
        has_mask = has_mask_input[:, None, None, None].to(kind)
        no_mask = self.prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = self.prompt.mask_downscaling(mask_input.to(kind))
        dense = has_mask * dense + (1 - has_mask) * no_mask
        source = image_embeddings.to(kind) + dense  # [P, 256, h, w]
        image_pe = self.image_pe.to(kind)
        out_tokens, image_tokens = self.decoder.transformer(source, image_pe, tokens)
        image_tokens = image_tokens.transpose(1, 2).reshape(source.shape)
        upscaled = self.decoder.output_upscaling(image_tokens)  # [P, 32, 4h, 4w]
        weights = torch.stack(
            [
                mlp(out_tokens[:, 1 + i, :])
                for i, mlp in enumerate(self.decoder.output_hypernetworks_mlps)
            ],
            dim=1,
        )  # [P, 4, 32]
        height, width = upscaled.shape[-2:]
        masks = (weights @ upscaled.flatten(2)).unflatten(2, (height, width))
        scores = self.decoder.iou_prediction_head(out_tokens[:, 0, :])
        if hq_features is None:
            return masks.float(), scores.float()
        hq_map = self.decoder.embedding_maskfeature(upscaled) + hq_features.to(kind)
        hq_weights = self.decoder.hf_mlp(out_tokens[:, 5, :]).unsqueeze(1)  # [P, 1, 32]
        hq_masks = (hq_weights @ hq_map.flatten(2)).unflatten(2, (height, width))
        return masks.float(), scores.float(), hq_masks.float()

    def outputs(
        self, features: Mapping[str, Tensor], prompts: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Run on what `EncoderModule.features` gives, and return every output by its name.

        Args:
            features: of one image: [1, 256, h, w], of SAM-HQ also [1, 32, 4h, 4w].
            prompts: the other inputs of `forward`, in their order.

        Returns:
            `low_res_masks` [P, 4, 4h, 4w], `iou_predictions` [P, 4], of SAM-HQ `hq_masks`
            [P, 1, 4h, 4w].
        """
        more = {name: map_ for name, map_ in features.items() if name != IMAGE_EMBEDDINGS}
        found = self(features[IMAGE_EMBEDDINGS], *prompts, **more)
        return {spec.name: value for spec, value in zip(self.part("").outputs, found, strict=True)}

    def _tokens(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Output tokens, 5 or 6, followed by the prompt's point tokens, [P, T + K, 256] float32."""
        height, width = self.input_size
        unit = (coords + 0.5) / coords.new_tensor([width, height]) * 2 - 1
        angle = unit[..., :1] * self.gaussian[0] + unit[..., 1:] * self.gaussian[1]
        angle = 2 * math.pi * angle
        position = torch.cat([angle.sin(), angle.cos()], -1)  # [P, K, 256]
        position = torch.where(labels[..., None] == -1, torch.zeros_like(position), position)
        points = position
        for row, label in enumerate((-1, 0, 1, 2, 3)):
            is_label = (labels[..., None] == label).float()
            points = points + is_label * self.label_embeddings[row]
        own = [self.decoder.iou_token.weight, self.decoder.mask_tokens.weight]
        own += [self.decoder.hf_token.weight] if self.is_hq else []
        output_tokens = torch.cat(own).float().expand(coords.shape[0], -1, -1)
        return torch.cat([output_tokens, points], 1)

    def part(self, file: str) -> Part:
        """Return the decoder's contract."""
        height, width = self.embedding_size
        channels = self.image_pe.shape[1]
        low_res = (4 * height, 4 * width)
        hq_inputs: list[TensorSpec] = []
        hq_outputs: list[TensorSpec] = []
        if self.is_hq:
            hq_channels = self.decoder.hf_mlp.layers[-1].out_features
            hq_inputs.append(TensorSpec(HQ_FEATURES, (1, hq_channels, *low_res), "float32"))
            hq_outputs.append(TensorSpec(HQ_MASKS, ("P", 1, *low_res), "float32"))
        return Part(
            file,
            inputs=(
                TensorSpec(IMAGE_EMBEDDINGS, (1, channels, height, width), "float32"),
                TensorSpec("point_coords", ("P", "K", 2), "float32"),
                TensorSpec("point_labels", ("P", "K"), "float32"),
                TensorSpec("mask_input", ("P", 1, *low_res), "float32"),
                TensorSpec("has_mask_input", ("P",), "float32"),
                *hq_inputs,
            ),
            outputs=(
                TensorSpec("low_res_masks", ("P", 4, *low_res), "float32"),
                TensorSpec("iou_predictions", ("P", 4), "float32"),
                *hq_outputs,
            ),
            profile=dict(DECODER_PROFILE),
        )
