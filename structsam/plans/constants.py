"""Index tables that follow from shapes alone are computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Constant = TypeVar("Constant")

#: How many constants are kept; a model has some 20 for every size of its input.
_KEPT = 128


def constant(make: Callable[..., Constant], *key: Hashable, like: Tensor) -> Constant:
    """Return `make(*key, device)`: tensors on the device of `like` that nobody changes.

    They are kept from call to call, so a block does not compute its geometry again, nor waits for
    copies to a GPU. While a graph is traced, tensors stand for no values: they are made anew.

    Args:
        make: a function or class of the module's top level; it is part of the key.
        key: all that the constant depends on, beside the device.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor:  # subclasses trace, too
        return make(*key, like.device)
    return _kept(make, key, like.device)


@lru_cache(maxsize=_KEPT)
def _kept(make: Callable[..., Any], key: tuple[Hashable, ...], device: torch.device) -> Any:
    with torch.inference_mode(False):  # else autograd could not use them in a later call
        return make(*key, device)
