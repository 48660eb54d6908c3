"""DATASETS: every dataset. A new one is one file here and one line in the dict."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from structsam.errors import UserError
from structsam.evaluation.datasets.ade20k import Ade20k
from structsam.evaluation.datasets.base import Dataset
from structsam.evaluation.datasets.cityscapes import Cityscapes
from structsam.evaluation.datasets.coco import Coco
from structsam.evaluation.datasets.folder import Folder
from structsam.evaluation.datasets.hqsam import (
    Coift,
    Dis5kTest,
    Dis5kValidation,
    Hrsod,
    ThinObject5kTest,
)
from structsam.evaluation.datasets.inbreast import Inbreast

DATASETS: dict[str, type[Dataset]] = {
    "folder": Folder,
    "dis5k-vd": Dis5kValidation,
    "dis5k-te": Dis5kTest,
    "thinobject5k-te": ThinObject5kTest,
    "coift": Coift,
    "hrsod": Hrsod,
    "coco": Coco,
    "cityscapes": Cityscapes,
    "ade20k": Ade20k,
    "inbreast": Inbreast,
}

__all__ = ["DATASETS", "Dataset", "find_dataset", "open_dataset"]


def find_dataset(name: str) -> type[Dataset]:
    """Return the dataset of that name.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}. Choose one of: {', '.join(DATASETS)}")
    return DATASETS[name]


def open_dataset(name: str, root: str | Path, **options: Any) -> Dataset:
    """List the images of a dataset.

    Args:
        name: key in `DATASETS`.
        root: folder of the set.
        options: what the dataset takes beside its root, such as `boxes` for `coco`.

    Raises:
        UserError: unknown name or option, or a root that does not have the set's layout.
    """
    dataset = find_dataset(name)
    known = [key for key in inspect.signature(dataset).parameters if key != "root"]
    for option in options:
        if option not in known:
            takes = f"It takes: {', '.join(known)}" if known else "It has no options"
            raise UserError(f"dataset {name!r} has no option {option!r}. {takes}")
    return dataset(root, **options)
