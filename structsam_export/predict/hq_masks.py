"""From a decoder's outputs to masks; those of SAM-HQ are sums of two.

SAM-HQ's decoder draws SAM's four masks and one of the HQ token. Its authors' predictor adds them:
the HQ mask to SAM's single one, or to the best of SAM's three, as one mask for every prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from structsam_export.bundle.manifest import HQ_MASKS

_MASKS, _SCORES = "low_res_masks", "iou_predictions"


def choose_masks(
    outputs: Mapping[str, np.ndarray], multimask: bool, hq_token_only: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [P, C] and logits [P, C, h, w] of what a decoder drew for P prompts.

    C is 3 with `multimask`, else 1. That of SAM-HQ is 1: `multimask` then adds the HQ mask to the
    best of three, and scores are those of SAM's mask.

    Args:
        hq_token_only: of SAM-HQ: the HQ mask alone.
    """
    chosen = slice(1, None) if multimask else slice(0, 1)
    scores, masks = outputs[_SCORES][:, chosen], outputs[_MASKS][:, chosen]
    if HQ_MASKS not in outputs:
        return scores, masks
    best = scores.argmax(1)[:, None]
    scores = np.take_along_axis(scores, best, 1)
    if hq_token_only:
        return scores, outputs[HQ_MASKS]
    return scores, np.take_along_axis(masks, best[..., None, None], 1) + outputs[HQ_MASKS]


def every_mask(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return all logits that may be asked for, [P, 4, h, w].

    Of SAM-HQ [P, 5, h, w]: the HQ mask on each of SAM's four, and alone. Polygraphy's script holds
    this function, and therefore literal names.
    """
    masks = outputs["low_res_masks"]
    if "hq_masks" not in outputs:
        return masks
    return np.concatenate([masks + outputs["hq_masks"], outputs["hq_masks"]], 1)
