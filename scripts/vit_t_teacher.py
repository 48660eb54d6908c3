"""A SAM in ONNX files as the teacher of `train_vit_t.py`.

FOLDER/encoder.onnx is a TinyViT-5M (Wu et al. 2022, arXiv 2207.10666) with SAM's neck, as MobileSAM
(arXiv 2306.14289) has it, batch norms folded into the convolutions; FOLDER/sam.onnx is SAM's prompt
encoder and mask decoder as `segment_anything`'s ONNX export writes them. The exporter renames what
it transposes or folds, but keeps the order of use, which is what is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structsam.errors import UserError

_WINDOWS = (7, 14, 7)  # of the stages with attention
_BLOCKS = (2, 2, 6, 2)
_STRIDES = (2, 2, 1)  # of the mergings between stages
_HEAD_DIM = 32


class TinyViTTeacher(nn.Module):
    """Normalised images [B, 3, S, S] to embeddings [B, 256, S/16, S/16]; nothing is trained."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self._build(_Weights(path))
        except (KeyError, StopIteration, RuntimeError) as error:
            raise UserError(f"{path} is no TinyViT-5M with SAM's neck.") from error
        self.requires_grad_(False).eval()

    def _build(self, weights: _Weights) -> None:
        self.stem = nn.ModuleList([weights.conv(2), weights.conv(2)])
        self.convolutions = nn.ModuleList(
            [nn.ModuleList([weights.conv() for _ in range(3)]) for _ in range(_BLOCKS[0])]
        )
        self.mergings = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage, (window, stride) in enumerate(zip(_WINDOWS, _STRIDES, strict=True), start=1):
            merging = [weights.conv(), weights.conv(stride), weights.conv()]
            self.mergings.append(nn.ModuleList(merging))
            blocks = [_Block(weights, stage, block, window) for block in range(_BLOCKS[stage])]
            self.stages.append(nn.ModuleList(blocks))
        self.neck = nn.ModuleList(
            [weights.neck_conv(0), weights.neck_norm(), weights.neck_conv(2), weights.neck_norm()]
        )

    def forward(self, images: Tensor) -> Tensor:
        x = images
        first, second = self.stem
        x = second(F.gelu(first(x)))
        for expand, depthwise, project in self.convolutions:
            x = F.gelu(x + project(F.gelu(depthwise(F.gelu(expand(x))))))
        for (expand, depthwise, project), blocks in zip(self.mergings, self.stages, strict=True):
            x = project(F.gelu(depthwise(F.gelu(expand(x)))))
            for block in blocks:
                x = block(x)
        reduce, norm1, mix, norm2 = self.neck
        return norm2(mix(norm1(reduce(x))))


class _Block(nn.Module):
    """Windowed attention with a table of biases, a depthwise convolution, an MLP."""

    bias: Tensor

    def __init__(self, weights: _Weights, stage: int, block: int, window: int) -> None:
        super().__init__()
        name = f"layers.{stage}.blocks.{block}"
        self.window = window
        self.norm1 = weights.layer_norm(f"{name}.attn.norm")
        self.qkv = weights.linear(f"{name}.attn.qkv")
        self.proj = weights.linear(f"{name}.attn.proj")
        self.register_buffer("bias", weights.attention_bias())
        self.local = weights.conv()
        self.norm2 = weights.layer_norm(f"{name}.mlp.norm")
        self.fc1 = weights.linear(f"{name}.mlp.fc1")
        self.fc2 = weights.linear(f"{name}.mlp.fc2")

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self._attention(x)
        x = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x.permute(0, 3, 1, 2)

    def _attention(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        window = self.window
        down, right = -height % window, -width % window
        x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // window, (width + right) // window
        x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        x = self.norm1(x.reshape(-1, window * window, channels))
        # every head has its q, k and v side by side
        q, k, v = self.qkv(x).unflatten(-1, (-1, 3, _HEAD_DIM)).permute(3, 0, 2, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.to(q.dtype))
        x = self.proj(x.transpose(1, 2).flatten(2))
        x = x.view(batch, rows, columns, window, window, channels).transpose(2, 3)
        return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


class _Weights:
    """What an ONNX file holds, by name where it has one, else in the order of use."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import numpy_helper

        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # protobuf's own kinds, by version
            raise UserError(f"Cannot read the teacher {path} ({error}).") from error
        self.named = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}
        made = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type == "Constant":
                value = numpy_helper.to_array(node.attribute[0].t)
                self.named[node.output[0]] = torch.tensor(value)
        self.convs = iter([n for n in graph.node if n.op_type == "Conv" and "neck" not in n.name])
        products = [n.input[1] for n in graph.node if n.op_type == "MatMul"]
        self.products = iter([self.named[n] for n in products if n.startswith("onnx::MatMul_")])
        self.norms = iter([n for n in self.named if n.startswith(("onnx::Mul_", "onnx::Add_"))])
        masks = [made[n.input[0]] for n in graph.node if n.op_type == "Softmax"]
        self.masks = iter([self.named[i] for n in masks for i in n.input if i in self.named])

    def conv(self, stride: int = 1) -> nn.Conv2d:
        node = next(self.convs)
        weight, bias = (self.named[name] for name in node.input[1:])
        return _conv(weight, bias, stride)

    def neck_conv(self, index: int) -> nn.Conv2d:
        return _conv(self.named[f"neck.{index}.weight"], None, 1)

    def neck_norm(self) -> _ChannelNorm:
        weight, bias = (self.named[next(self.norms)].flatten() for _ in range(2))
        return _ChannelNorm(weight, bias)

    def layer_norm(self, name: str) -> nn.LayerNorm:
        weight, bias = self.named[f"{name}.weight"], self.named[f"{name}.bias"]
        norm = nn.LayerNorm(len(weight))
        norm.load_state_dict({"weight": weight, "bias": bias})
        return norm

    def linear(self, name: str) -> nn.Linear:
        weight = next(self.products)  # [in, out]
        linear = nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": weight.T, "bias": self.named[f"{name}.bias"]})
        return linear

    def attention_bias(self) -> Tensor:
        return next(self.masks)


def _conv(weight: Tensor, bias: Tensor | None, stride: int) -> nn.Conv2d:
    outputs, inputs, side, _ = weight.shape
    groups = outputs if inputs == 1 else 1
    conv = nn.Conv2d(
        inputs * groups, outputs, side, stride, side // 2, groups=groups, bias=bias is not None
    )
    conv.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return conv


class _ChannelNorm(nn.Module):
    """SAM's `LayerNorm2d`, statistics in FP32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).float()
        x = F.layer_norm(x, self.weight.shape, self.weight.float(), self.bias.float(), 1e-6)
        return x.permute(0, 3, 1, 2)


def decoder_weights(path: Path) -> dict[str, Tensor]:
    """State of SAM's prompt encoder and mask decoder in an ONNX file, by SAM's own names."""
    weights = _Weights(path)
    state = {
        name.removeprefix("model."): value
        for name, value in weights.named.items()
        if name.startswith(("mask_decoder.", "model.prompt_encoder."))
    }
    products = list(weights.products)
    names = list(_products())
    if len(products) != len(names):
        raise UserError(f"{path} is no SAM decoder as segment_anything exports it.")
    for name, product in zip(names, products, strict=True):
        state[f"{name}.weight"] = product.T.contiguous()
    rest = {n: v for n, v in weights.named.items() if n.startswith("onnx::")}
    norms = [v.flatten() for n, v in rest.items() if v.ndim == 3 and v.shape[1:] == (1, 1)]
    places = [
        "prompt_encoder.mask_downscaling.1",
        "prompt_encoder.mask_downscaling.4",
        "mask_decoder.output_upscaling.1",
    ]
    for place, weight, bias in zip(places, norms[::2], norms[1::2], strict=True):
        state[f"{place}.weight"], state[f"{place}.bias"] = weight, bias
    tokens = next(v for n, v in rest.items() if n.startswith("onnx::Expand_"))[0]
    state["mask_decoder.iou_token.weight"] = tokens[:1]
    state["mask_decoder.mask_tokens.weight"] = tokens[1:]
    no_mask = next(v for v in rest.values() if v.ndim == 4)
    state["prompt_encoder.no_mask_embed.weight"] = no_mask.reshape(1, -1)
    return state


def _products() -> Iterator[str]:
    """Names of the linear layers that are exported as products, in the order of use."""
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    transformer = "mask_decoder.transformer"
    for layer in ("layers.0", "layers.1"):
        for part in ("self_attn", "cross_attn_token_to_image"):
            yield from (f"{transformer}.{layer}.{part}.{name}" for name in attention)
        yield from (f"{transformer}.{layer}.mlp.{name}" for name in ("lin1", "lin2"))
        part = "cross_attn_image_to_token"
        yield from (f"{transformer}.{layer}.{part}.{name}" for name in attention)
    yield from (f"{transformer}.final_attn_token_to_image.{name}" for name in attention)
