"""INbreast (Moreira et al. 2012): mammograms with outlines of masses and clusters."""

from __future__ import annotations

import plistlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from xml.parsers.expat import ExpatError

import numpy as np
from PIL import Image, ImageDraw

from structsam.errors import UserError
from structsam.evaluation.datasets.base import ProtocolName
from structsam.evaluation.datasets.image_files import unreadable
from structsam.evaluation.datasets.layout import Layout, require_layout
from structsam.evaluation.datasets.pairs import Annotation, PairedDataset, files_by_name
from structsam.evaluation.sample import ObjectMask, Problem

_IMAGES, _OUTLINES = "AllDICOMs", "AllXML"
#: Findings that are objects, by their name in the XML files.
_FINDINGS = {"mass": "mass", "cluster": "calcification cluster"}
_LEAST_POINTS = 3
_PERCENTILES = (0.5, 99.5)


class Inbreast(PairedDataset):
    """410 mammograms. Names are the numbers that begin the files' names.

    Objects are masses and clusters of calcifications with an outline of three points or more.
    Clusters drawn as points, single calcifications and other findings are left out, and counted in
    one problem per image. Images without an XML file show nothing.
    """

    name = "inbreast"
    title = "INbreast"
    layout = "AllDICOMs/NUMBER_....dcm\nAllXML/NUMBER.xml"
    protocol: ClassVar[ProtocolName] = "medsam"

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        require_layout(type(self), self.root, [Layout((f"{_IMAGES}/", f"{_OUTLINES}/"))])
        _load_pydicom()
        images: dict[str, Path] = {}
        scans, problems = files_by_name(self.root / _IMAGES, (".dcm",))
        for stem, path in scans.items():
            number = stem.partition("_")[0]
            if number in images:
                detail = f"{path.name} has the number of {images[number].name}, which is used"
                problems.append(Problem(number, "missing partner", detail))
            else:
                images[number] = path
        outlines, wrong = files_by_name(self.root / _OUTLINES, (".xml",))
        self._take(images, outlines, [*problems, *wrong])

    def _read_image(self, image_id: str, path: Path) -> np.ndarray:
        return np.repeat(medsam_grey(_read_dicom(image_id, path))[..., None], 3, axis=2)

    def _annotation(
        self, image_id: str, image: np.ndarray, image_path: Path, mask_path: Path
    ) -> Annotation:
        height, width = image.shape[:2]
        objects: list[ObjectMask] = []
        problems: list[Problem] = []
        skipped: Counter[str] = Counter()
        for number, (name, points) in enumerate(_read_outlines(image_id, mask_path), start=1):
            category = _FINDINGS.get(name.lower())
            if category is None or len(points) < _LEAST_POINTS:
                skipped[f"{name} of single points" if category else name] += 1
                continue
            mask = fill_outline(points, height, width)
            if mask.any():
                objects.append(ObjectMask(str(number), mask, category))
            else:
                detail = f"outline {number}, {name}, lies outside the image"
                problems.append(Problem(image_id, "empty mask", detail))
        if skipped:
            told = ", ".join(f"{count} {name}" for name, count in sorted(skipped.items()))
            problems.append(Problem(image_id, "left out", told))
        return Annotation(objects, problems)


def medsam_grey(pixels: np.ndarray) -> np.ndarray:
    """Turn grey values [H, W] into uint8 [H, W] by MedSAM's rule (Ma et al. 2024, methods).

    Clipped to the 0.5th and 99.5th percentiles of the non-zero values, stretched to 0..255 and cut
    to whole numbers; zero, the background, stays zero.
    """
    shown = pixels[pixels > 0]
    if not shown.size:
        return np.zeros(pixels.shape, np.uint8)
    low, high = np.percentile(shown, _PERCENTILES)
    clipped = np.clip(pixels.astype(np.float64), low, high)
    low, high = clipped.min(), clipped.max()
    # zero is below the percentiles, so it becomes zero again
    return ((clipped - low) / max(high - low, 1e-8) * 255).astype(np.uint8)


def fill_outline(points: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Return the mask bool [H, W] of a polygon of (x, y), with the pixels on its outline."""
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon(points, fill=1)
    return np.array(canvas, bool)


def _read_outlines(image_id: str, path: Path) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Name and points (x, y) in pixels of every finding: OsiriX's property list.

    Raises:
        ProblemError: damaged.
    """
    try:
        told: Any = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        findings = [roi for image in told["Images"] for roi in image["ROIs"]]
        read = [
            (str(roi.get("Name", "")) or "unnamed", [_point(text) for text in roi["Point_px"]])
            for roi in findings
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ExpatError) as error:
        raise unreadable(image_id, path, f"{type(error).__name__} {error}") from None
    yield from read


def _point(text: str) -> tuple[float, float]:
    """Parse "(1712.5, 340.0)"."""
    x, y = (float(number) for number in text.strip("() ").split(","))
    return x, y


def _read_dicom(image_id: str, path: Path) -> np.ndarray:
    """Grey values [H, W], bright for dense tissue.

    Raises:
        ProblemError: damaged, compressed in a way that pydicom cannot undo here, or no grey image.
    """
    pydicom = _load_pydicom()
    wrong = (
        OSError, ValueError, EOFError, AttributeError, KeyError, TypeError, RuntimeError,
        pydicom.errors.InvalidDicomError,
    )  # fmt: skip
    try:
        scan = pydicom.dcmread(path)
        pixels = np.array(scan.pixel_array)
        inverted = scan.PhotometricInterpretation == "MONOCHROME1"
    except wrong as error:
        raise unreadable(image_id, path, f"{type(error).__name__} {error}") from None
    if pixels.ndim != 2:
        raise unreadable(image_id, path, f"expected one grey image, found {list(pixels.shape)}")
    return pixels.max() - pixels if inverted else pixels


def _load_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.errors
    except ImportError:
        raise UserError(
            "INbreast's DICOM files need pydicom, which is not installed here. "
            "Install it with `pip install 'structsam[eval]'`"
        ) from None
    return pydicom
