"""The pictures and contact sheets of `inspect`, from what the blocks decided to PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from structsam_export.bundle import atomic
from structsam_export.inspect.merge_picture import (
    Tile,
    contact_sheet,
    draw_energy,
    draw_groups,
    draw_note,
)
from structsam_export.inspect.merged_map import (
    MergedMap,
    count_edges,
    photo_gradient,
    resized_photo,
)
from structsam_export.inspect.report import EDGE_TOKENS, Inspection, InspectRow
from structsam_export.predict.preprocessing import ImageGeometry

if TYPE_CHECKING:
    from structsam.models import ModelSpec

#: Pixels per token.
_PICTURE, _METHODS, _DEPTH = 16, 8, 6
_METHOD_COLUMNS, _DEPTH_COLUMNS = 2, 3
_LEGEND = (
    "One colour: tokens that are merged into one, which stands at the dot. Clear: tokens left "
    "alone. Thin lines: windows. Right: the method's energy, dark low, bright high. "
    f"{EDGE_TOKENS.capitalize()}."
)
_RANDOM = "random weights: what is merged carries no meaning"


@dataclass(frozen=True)
class Inspected:
    """What one method did.

    Args:
        maps: by block; empty when it cannot be.
        rates: by block.
        options: the method's own, where they were given.
        note: why it cannot be; else empty.
        in_depth: whether `maps` holds every merging block, for the sheet over depth.
    """

    method: str
    maps: Mapping[int, MergedMap] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    in_depth: bool = False


def draw_inspection(
    found: Sequence[Inspected],
    photo: np.ndarray,
    geometry: ImageGeometry,
    spec: ModelSpec,
    blocks: Sequence[int],
    rate: float | Sequence[float],
    weights: str,
    random: bool,
    image: Path,
    out: Path,
) -> Inspection:
    """Write a picture per method and block, a sheet per block, and a sheet over depth.

    Args:
        found: every method, in the order of the sheets.
        photo: uint8 [H, W, 3].
        blocks: which to draw for every method.
        weights: what the model was filled with, in words.
        random: whether these are random weights; the sheets then say so.
        image: the photo's file.

    Raises:
        UserError: the folder cannot be written.
    """
    painter = _Painter(photo, geometry, spec.patch_size)
    start = f"{image.stem}_rate{f'{rate:g}' if isinstance(rate, (int, float)) else 's-by-block'}"
    given = _suffix({name: value for one in found for name, value in one.options.items()})
    alarm = _RANDOM if random else None
    about = f"{image.name}, {spec.label}, {weights}"
    gradient = photo_gradient(photo, geometry, spec.patch_size)
    rows: dict[tuple[str, int], InspectRow] = {}
    pictures, sheets = [], []
    for one in found:
        for block in sorted({*blocks, *one.maps}):
            file = None
            if block in one.maps and block in blocks:
                file = out / f"{start}_block{block:02}_{one.method}{_suffix(one.options)}.png"
                pictures.append(file)
            rows[one.method, block] = _row(one, block, spec, gradient, file)
            if file:
                tile = painter.tile(rows[one.method, block], one.maps[block], _PICTURE)
                heading = [about, _LEGEND]
                _write(file, contact_sheet([tile], heading, 1, alarm))
    for block in blocks:
        tiles = [
            painter.tile(rows[one.method, block], one.maps.get(block), _METHODS) for one in found
        ]
        heading = [f"methods at block {block}: {about}", _LEGEND]
        sheets.append(out / f"{start}_block{block:02}_methods{given}.png")
        _write(sheets[-1], contact_sheet(tiles, heading, _METHOD_COLUMNS, alarm))
    depth: list[InspectRow] = []
    for one in found:
        if one.in_depth:
            depth = [rows[one.method, block] for block in sorted(one.maps)]
            tiles = [painter.tile(row, one.maps[row.block], _DEPTH) for row in depth]
            heading = [f"{one.method} over depth: {about}", _LEGEND]
            sheets.append(out / f"{start}_depth_{one.method}{_suffix(one.options)}.png")
            _write(sheets[-1], contact_sheet(tiles, heading, _DEPTH_COLUMNS, alarm))
    return Inspection(
        model=spec.label,
        weights=weights,
        image=image.name,
        rate=rate,
        rows=tuple(rows[one.method, block] for block in blocks for one in found),
        depth=tuple(depth),
        files=(*pictures, *sheets),
    )


def _suffix(options: Mapping[str, Any]) -> str:
    """Keep pictures of other options apart by their names."""
    return "".join(f"_{name}-{value}" for name, value in options.items())


def _row(
    one: Inspected, block: int, spec: ModelSpec, gradient: np.ndarray, file: Path | None
) -> InspectRow:
    kind = "global" if block in spec.global_blocks else "window"
    if block not in one.maps:
        note = one.note or "this block merges nothing"
        return InspectRow(one.method, block, kind, options=dict(one.options), note=note)
    found = one.maps[block]
    return InspectRow.of(
        one.method,
        block,
        kind,
        one.rates[block],
        found,
        photo=count_edges(found, gradient),
        options=dict(one.options),
        file=file,
    )


@dataclass(frozen=True)
class _Painter:
    """Draws panels of one photo."""

    photo: np.ndarray
    geometry: ImageGeometry
    patch: int

    def tile(self, row: InspectRow, found: MergedMap | None, token: int) -> Tile:
        """Draw groups and energy, or say why there are none; `token` pixels per token."""
        photo = resized_photo(self.photo, self.geometry, token / self.patch)
        size = (photo.shape[1], photo.shape[0])
        if found is None:
            return Tile((draw_note(row.note, (max(2 * size[0], 380), size[1])),), row.caption())
        energy = draw_energy(found, token, photo.shape)
        if energy is None:
            energy = draw_note("no energy", size)
        return Tile((draw_groups(photo, found, token), energy), row.caption())


def _write(file: Path, picture: Image.Image) -> None:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    atomic.write_bytes(file, stream.getvalue())
