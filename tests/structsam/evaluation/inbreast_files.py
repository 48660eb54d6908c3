"""Writes DICOM images and outlines as INbreast has them."""

from __future__ import annotations

import plistlib
from pathlib import Path

import numpy as np


def outline(mask: np.ndarray) -> list[str]:
    """Corners of a rectangle, written as OsiriX does."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = [(xs[0], ys[0]), (xs[-1], ys[0]), (xs[-1], ys[-1]), (xs[0], ys[-1])]
    return [f"({x}.250000, {y}.500000)" for x, y in corners]


def write_outlines(path: Path, findings: list[tuple[str, list[str]]]) -> Path:
    rois = [{"Name": n, "NumberOfPoints": len(p), "Point_px": p} for n, p in findings]
    path.parent.mkdir(parents=True, exist_ok=True)
    plist = {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]}
    path.write_bytes(plistlib.dumps(plist, fmt=plistlib.FMT_XML))
    return path


def write_dicom(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2") -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    scan.SOPClassUID = meta.MediaStorageSOPClassUID
    scan.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    scan.Rows, scan.Columns = pixels.shape
    scan.SamplesPerPixel, scan.PixelRepresentation = 1, 0
    scan.PhotometricInterpretation = kind
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 14, 13
    scan.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.save_as(path, enforce_file_format=True)
    return path
