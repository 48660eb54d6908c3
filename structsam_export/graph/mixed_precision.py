"""FP16 as a property of the graph: linear layers and attention in float16, norms in float32.

TensorRT 11 and TensorRT for RTX know only strongly typed networks, so what is float32 here is
float32 in the engine. Softmax stays with its attention (a float32 island around it alone would
break the fused kernel); merging computes energy and ranks in float32 by itself.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Float32Norm(nn.Module):
    """Run a normalisation in float32 and return the input's type."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of any floating type and shape that the norm takes."""
        return self.norm(x.float()).to(x.dtype)


def to_mixed_fp16(module: Module) -> Module:
    """Return a float16 copy of `module` whose LayerNorms keep float32 weights and arithmetic."""
    mixed = copy.deepcopy(module)
    norms = [
        (parent, name, child)
        for parent in mixed.modules()
        for name, child in parent.named_children()
        if isinstance(child, (nn.LayerNorm, LayerNorm2d))
    ]
    exact = [{key: value.clone() for key, value in n.state_dict().items()} for _, _, n in norms]
    mixed.half()
    for (parent, name, norm), weights in zip(norms, exact, strict=True):
        norm.float().load_state_dict(weights)
        setattr(parent, name, Float32Norm(norm))
    return mixed
