"""Rates per block that promise more than one rate everywhere, at the same multiply-adds.

Every block is merged alone at every rate on a few photos. Dynamic programming then finds the rates
whose losses, taken as independent, sum to the least within the cost of a uniform rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam.errors import UserError
from structsam_export.tune.knapsack import choose_rates
from structsam_export.tune.merging_loss import LossMeter
from structsam_export.tune.record import Record

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.models import ModelSpec

#: Blocks of a stage share one rate.
MIXED_PLACEMENTS = ("attention", "block")
Progress = Callable[[str, int, int], None]


def block_losses(
    meter: LossMeter,
    base: MergeConfig,
    rates: Sequence[float],
    photos: Sequence[Path],
    record: Record,
    progress: Progress,
) -> np.ndarray:
    """Return the mean loss [B, R] of merging each of B blocks alone at each of R rates."""
    depth = len(meter.sam.image_encoder.blocks)
    loss = np.zeros((len(photos), depth, len(rates)))
    done, total = 0, loss.size
    for number, photo in enumerate(photos):
        for block in range(depth):
            for column, rate in enumerate(rates):
                alone = tuple(rate if i == block else 0.0 for i in range(depth))

                def measure(alone: tuple[float, ...] = alone, block: int = block) -> float:
                    config = replace(base, rate=alone)
                    return meter.losses(config, photo, block).total  # noqa: B023, called at once

                if rate:
                    name = f"block {base.placement} {block} {rate:g} {photo.name}"
                    loss[number, block, column] = record.get(name, measure)
                done += 1
                progress(f"merging block by block ({base.placement})", done, total)
    return loss.mean(0)


def mixed_rates(
    spec: ModelSpec, base: MergeConfig, rates: Sequence[float], loss: np.ndarray
) -> list[tuple[float, ...]]:
    """Return a mix at the cost of every uniform rate; those that are uniform are left out.

    Args:
        rates: R rates, 0 among them.
        loss: [B, R], as `block_losses` gives.
    """
    from structsam.flops import encoder_flops

    counted = [encoder_flops(spec, replace(base, rate=(rate,) * spec.depth)) for rate in rates]
    cost = np.array([[block.total / 1e9 for block in one.blocks] for one in counted]).T
    found: list[tuple[float, ...]] = []
    for column, rate in enumerate(rates):
        if not rate:
            continue
        try:
            picked = choose_rates(loss**2, cost, float(cost[:, column].sum()) * (1 + 1e-9))
        except UserError:
            continue
        mix = tuple(rates[i] for i in picked)
        if len(set(mix)) > 1 and mix not in found:
            found.append(mix)
    return found
