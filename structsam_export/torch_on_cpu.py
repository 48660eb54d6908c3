"""A setting that makes PyTorch faster on a CPU, and changes no result that matters."""

from __future__ import annotations


def flush_denormals() -> None:
    """Let processors take numbers below 1e-38 for zero.

    The softmax of trained SAM weights leaves many such denormal numbers, with which processors
    compute some hundred times slower: they double the time of an unmerged ViT-T encoder. Random
    weights do not show it (docs/performance.md).

    Call it before PyTorch starts its threads: they inherit the setting.
    """
    import torch

    torch.set_flush_denormal(True)
