"""Of boxes that lie on one another, keep the best: greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices of the boxes that stay, best score first; of equal scores the first wins.

    Args:
        boxes: [N, 4], (x0, y0, x1, y1).
        scores: [N].
        threshold: a box goes when its IoU with a better one that stays is above this.

    The second lies on the first, the third beside it:

    >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> box_nms(boxes, np.array([0.8, 0.9, 0.5]), 0.7).tolist()
    [1, 2]
    """
    order = np.argsort(-scores, kind="stable")
    # float32 as in torchvision, so that a box that is exactly at the threshold goes or stays alike
    x0, y0, x1, y1 = boxes[order].astype(np.float32).T
    areas = (x1 - x0) * (y1 - y0)
    gone = np.zeros(len(order), bool)
    for best in range(len(order)):
        if gone[best]:
            continue
        rest = slice(best + 1, None)
        wide = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        high = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        both = np.maximum(wide, 0) * np.maximum(high, 0)
        with np.errstate(invalid="ignore"):  # two boxes without area have no IoU, and both stay
            iou = both / (areas[best] + areas[rest] - both)
        gone[rest] |= iou.astype(np.float64) > threshold
    return order[~gone]
