"""The four test sets of HQ-SAM, and DIS5K's test set, as HQ-SAM's `train/data` folder has them.

Ke et al. 2023; DIS5K: Qin et al. 2022; ThinObject-5K: Liew et al. 2021; COIFT: Mansilla and
Miranda; HRSOD: Zeng et al. 2019. One object per image: the pixels above 128 of 255.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from structsam.evaluation.datasets.base import ProtocolName
from structsam.evaluation.datasets.image_files import read_matte, require_same_size
from structsam.evaluation.datasets.layout import Layout, require_layout
from structsam.evaluation.datasets.pairs import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Annotation,
    PairedDataset,
    files_by_name,
)
from structsam.evaluation.sample import ObjectMask, Problem, ProblemError

_THRESHOLD = 128


class HqSamDataset(PairedDataset):
    """Images of one large object each. `root` is `train/data`, or the set's own folder.

    Attributes:
        parts: folders of the set, seen from `train/data`.
        images, masks: their names inside each.
    """

    protocol: ClassVar[ProtocolName] = "hqsam"
    parts: ClassVar[tuple[str, ...]]
    images: ClassVar[str]
    masks: ClassVar[str]

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        images: dict[str, Path] = {}
        masks: dict[str, Path] = {}
        problems: list[Problem] = []
        for folder in self._folders():
            # the part stays in the name: it must not change with the root that was given
            prefix = f"{folder.resolve().name}/" if len(self.parts) > 1 else ""
            for into, name, suffixes in (
                (images, self.images, IMAGE_SUFFIXES),
                (masks, self.masks, MASK_SUFFIXES),
            ):
                found, wrong = files_by_name(folder / name, suffixes, prefix=prefix)
                into.update(found)
                problems += wrong
        self._take(images, masks, problems)

    def _folders(self) -> list[Path]:
        """The folders of all parts, or of the one part that is `root` itself."""
        names = [part.rpartition("/")[2] for part in self.parts]
        together = Layout(self._needs(self.parts))
        beside = Layout(self._needs(names))
        own = Layout(self._needs([""]), root_name="|".join(names))
        layouts = [together, beside, own] if len(names) > 1 else [together, own]
        found = require_layout(type(self), self.root, layouts)
        inside = {together: self.parts, beside: tuple(names), own: ("",)}[found]
        return [self.root / part for part in inside]

    def _needs(self, folders: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        inside = (self.images, self.masks)
        return tuple(f"{folder}/{name}/".lstrip("/") for folder in folders for name in inside)

    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        matte = read_matte(image_id, mask_path)
        require_same_size(image_id, image, matte, image_path, mask_path)
        mask = matte > _THRESHOLD
        if not mask.any():
            detail = f"{mask_path.name} has no pixel above {_THRESHOLD}"
            raise ProblemError(Problem(image_id, "empty mask", detail))
        return Annotation([ObjectMask("1", mask)])


class Dis5kValidation(HqSamDataset):
    """DIS5K-VD, 470 images: what HQ-SAM and StructSAM report as DIS."""

    name = "dis5k-vd"
    title = "DIS5K validation"
    layout = "DIS5K/DIS-VD/im/NAME.jpg\nDIS5K/DIS-VD/gt/NAME.png"
    parts = ("DIS5K/DIS-VD",)
    images, masks = "im", "gt"


class Dis5kTest(HqSamDataset):
    """DIS5K-TE1 to TE4, 500 images each; names are `DIS-TE1/NAME`. One part can be the root."""

    name = "dis5k-te"
    title = "DIS5K test 1-4"
    layout = "DIS5K/DIS-TE1/im/NAME.jpg\nDIS5K/DIS-TE1/gt/NAME.png\nand DIS-TE2, DIS-TE3, DIS-TE4"
    parts = ("DIS5K/DIS-TE1", "DIS5K/DIS-TE2", "DIS5K/DIS-TE3", "DIS5K/DIS-TE4")
    images, masks = "im", "gt"


class ThinObject5kTest(HqSamDataset):
    """The test split of ThinObject-5K, 500 images."""

    name = "thinobject5k-te"
    title = "ThinObject-5K test"
    layout = (
        "thin_object_detection/ThinObject5K/images_test/NAME.jpg\n"
        "thin_object_detection/ThinObject5K/masks_test/NAME.png"
    )
    parts = ("thin_object_detection/ThinObject5K",)
    images, masks = "images_test", "masks_test"


class Coift(HqSamDataset):
    """COIFT, 280 images of birds and insects."""

    name = "coift"
    title = "COIFT"
    layout = (
        "thin_object_detection/COIFT/images/NAME.jpg\nthin_object_detection/COIFT/masks/NAME.png"
    )
    parts = ("thin_object_detection/COIFT",)
    images, masks = "images", "masks"


class Hrsod(HqSamDataset):
    """HRSOD, 287 images of high resolution, as HQ-SAM uses it."""

    name = "hrsod"
    title = "HRSOD"
    layout = (
        "thin_object_detection/HRSOD/images/NAME.jpg\n"
        "thin_object_detection/HRSOD/masks_max255/NAME.png"
    )
    parts = ("thin_object_detection/HRSOD",)
    images, masks = "images", "masks_max255"
