"""The forms that attention with relative positions can take: told, and counted, without torch.

All compute the same function. They differ in what a runtime makes of them: a fused kernel, which
never holds the M x M logits, or separate steps. TensorRT fuses where queries, keys and values have
equally many channels (at most 256), and takes an additive mask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from structsam.errors import UserError

#: The two kinds of blocks; each may have a form of its own.
KINDS = ("global", "window")
#: Leaves the choice to whoever knows the runtime; in torch it is `folded`.
AUTO = "auto"
#: What names and tables need not mention.
USUAL = (AUTO, "folded")


@dataclass(frozen=True)
class AttentionForm:
    """How a form computes `softmax(logits) v`.

    Args:
        title: what it does, in a few words.
        folded: relative positions are channels of queries and keys, `folded_channels` more a head;
            else they are an additive mask [B, h, M, M].
        padded: values have as many channels as queries and keys, the added ones zero.
        operator: one `Attention` node of ONNX (opset 23) instead of products and a softmax.
    """

    title: str
    folded: bool
    padded: bool = False
    operator: bool = False

    @property
    def fusable(self) -> bool:
        """Whether queries, keys and values are equally wide, as TensorRT's fused kernels want."""
        return self.padded or not self.folded


FORMS = {
    "folded": AttentionForm("relative positions inside the product", folded=True),
    "folded_padded": AttentionForm(
        "the same, values as wide as queries and keys: what TensorRT fuses", True, padded=True
    ),
    "dense": AttentionForm("relative positions as an additive mask of M x M", folded=False),
    "operator": AttentionForm(
        "folded_padded as ONNX's Attention (opset 23): fused in FP16, or refused", True, True, True
    ),
    "operator_dense": AttentionForm(
        "dense as ONNX's Attention (opset 23): fused in FP16, or refused", False, operator=True
    ),
}


def read_forms(text: str) -> dict[str, str]:
    """Return the form of every kind of block: {"global": ..., "window": ...}.

    Args:
        text: a key of `FORMS` for both kinds, `auto`, or one for each, such as
            `global=dense,window=folded`.

    Raises:
        UserError: anything else.
    """
    if text == AUTO:
        return dict.fromkeys(KINDS, "folded")
    found = dict.fromkeys(KINDS, text)
    if "=" in text:
        pairs = [part.split("=", 1) for part in text.split(",") if "=" in part]
        found = dict(pairs) if len(pairs) == len(KINDS) == text.count(",") + 1 else {}
    if set(found) != set(KINDS) or not set(found.values()) <= set(FORMS):
        raise UserError(
            f"unknown attention {text!r}. Use one of: {', '.join(FORMS)}, auto; or one for each "
            "kind of block, such as global=folded_padded,window=folded"
        )
    return found


def form_in_name(text: str) -> str:
    """Return a form of attention as part of a file's name; empty for the usual ones."""
    return "" if text in USUAL else re.sub("[=,]", "_", text)


def folded_channels(grid: tuple[int, int], head_dim: int, proportional: bool) -> int:
    """Channels that folding adds to a head: H + W (+ 1), up to a multiple of 8 in all."""
    extra = grid[0] + grid[1] + int(proportional)
    return extra + -(head_dim + extra) % 8
