"""Where a new bundle goes: the name of its folder, and what it may replace there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from structsam.errors import UserError
from structsam_export.bundle.folder import open_bundle
from structsam_export.bundle.manifest import MANIFEST

if TYPE_CHECKING:
    from structsam.config import MergeConfig


def bundle_name(model: str, config: MergeConfig, precision: str) -> str:
    """Return the folder name, such as `vit_b-structsam-r0.50` or `...-r0.50-global-fp32`.

    Different rates have different names: more digits where two do not tell, and for rates per
    block the start of their hash. `model` is `ModelSpec.label`, which tells the input size.
    """
    from structsam.merging.attention_forms import form_in_name

    if isinstance(config.rate, tuple):
        rate = "mixed" + hashlib.sha256(repr(config.rate).encode()).hexdigest()[:6]
    else:
        two = f"{config.rate:.2f}"
        rate = f"r{two}" if float(two) == config.rate else f"r{config.rate}"
    parts = [model, config.method, rate]
    if config.layers != "all":
        layers = config.layers
        parts.append(layers if isinstance(layers, str) else "layers" + "_".join(map(str, layers)))
    parts += [f"{name}_{value}" for name, value in config.options]
    if config.placement != "attention":
        parts.append(config.placement)
    if form := form_in_name(config.attention):
        parts.append(form)
    if config.align != 1:
        parts.append(f"align{config.align}")
    if config.proportional:
        parts.append("proportional")
    if config.prompt_aware:
        parts.append(f"box_{config.prompt_aware}")
    if precision != "fp16":
        parts.append(precision)
    return "-".join(parts)


def refuse_to_lose(final: Path, weights: str | None, force: bool) -> None:
    """Keep a bundle of real weights from being replaced by a meaningless one, or any folder.

    Args:
        final: where the new bundle goes; nothing may be there yet.
        weights: of the new one; `random` ones are meaningless.
        force: replace real weights all the same.

    Raises:
        UserError: what is there would be lost.
    """
    if not final.exists():
        return
    if not (final / MANIFEST).is_file():
        raise UserError(
            f"{final} exists and is no bundle. Choose another folder with `out=`, or move it away"
        )
    if weights == "random" and not force:
        try:
            has_random_weights = open_bundle(final, verify=False).has_random_weights
        except (UserError, KeyError):
            has_random_weights = False  # unknown: rather ask than lose
        if not has_random_weights:
            raise UserError(
                f"{final} may hold real weights, and random ones would replace it. "
                "Choose another folder with `out=`, or add `force=True`"
            )
