"""The contract of a dataset: it lists its images by name, and loads one when asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from structsam.evaluation.sample import Problem, Sample

ProtocolName = Literal["sam", "hqsam", "medsam"]


class Dataset(ABC):
    """Images with the masks of their objects, in the layout in which users have the set.

    A subclass is one file in this folder and one line in `DATASETS`. Listing is cheap (names only);
    `load` decodes, and may be called from several threads at once.

    Args:
        root: folder of the set.

    Raises:
        UserError: `root` does not have the set's layout; the message says what was expected where.

    Attributes:
        name: key in `DATASETS`.
        title: for tables.
        layout: the files that are expected under `root`, one line each; help and errors print it.
        protocol: how papers prompt and score this set; `--protocol` overrides it.
        listing_problems: what listing found (partners missing), by image.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[str]
    protocol: ClassVar[ProtocolName] = "sam"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.listing_problems: list[Problem] = []

    @property
    @abstractmethod
    def image_ids(self) -> Sequence[str]:
        """Names of all usable images, sorted; what `load` takes."""

    @abstractmethod
    def load(self, image_id: str) -> Sample:
        """Decode one image and its masks.

        Raises:
            ProblemError: the image cannot be used (unreadable, sizes differ, no object).
        """
