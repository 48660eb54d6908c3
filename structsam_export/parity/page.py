"""Draw a parity report as one self-contained HTML page: verdict, numbers, pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from PIL import Image

from structsam_export.bundle.folder import Bundle
from structsam_export.parity.reference import Reference, prompt_grid
from structsam_export.predict.overlay import draw_overlay
from structsam_export.predict.preprocessing import ImageGeometry, Photo
from structsam_export.predict.upscaling import binary_masks

if TYPE_CHECKING:
    from structsam_export.parity.compare import ParityReport, ParityRow

Shown = Sequence[tuple[Reference, "ParityRow", np.ndarray]]

_LONG_SIDE = 640
#: Prompts of `prompt_grid` whose masks are drawn where they show an object: an inner point and
#: the middle box. Shares of the photo that count as an object.
_USUAL_PROMPTS = (5, 20)
_LEAST, _MOST = 0.005, 0.9
_RANDOM = "random weights: masks carry no meaning"


def render(bundle: Bundle, report: ParityReport, shown: Shown) -> str:
    """Return the page's HTML.

    Args:
        shown: for every row that ran its reference and its masks bool [Q, 4, h, w].
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda v: v if isinstance(v, str) else f"{v:.3g}"
    pictures = [
        {
            "title": f"{row.backend} on {row.image}",
            "figures": _figures(bundle, reference),
            "triplets": [
                _mask_figures(prompt, reference.masks[prompt, 0], masks[prompt, 0], reference.photo)
                for prompt in drawn_prompts(reference)
            ],
        }
        for reference, row, masks in shown
    ]
    return environment.get_template("parity.html").render(
        report=report.to_dict(),
        verdict=report.verdict(),
        manifest=bundle.manifest,
        pictures=pictures,
        random_note=_RANDOM if report.random_weights else None,
    )


def _figures(bundle: Bundle, reference: Reference) -> list[dict[str, str]]:
    geometry = reference.photo.geometry
    small = _shrink(reference.photo.rgb)
    figures = [_figure("photo", Image.fromarray(small))]
    blocks = {block["index"]: block for block in bundle.manifest["merging"]["blocks"]}
    for index, energy in reference.energies.items():
        kind = blocks[index]["kind"]
        figures.append(
            _figure(f"energy, block {index} ({kind})", _energy_picture(energy, geometry, small))
        )
        merged = merged_tokens(
            reference.plans[index][0], blocks[index]["grid"], energy.shape[0], energy.shape[1]
        )
        figures.append(
            _figure(
                f"merged cells (shaded), block {index}: {blocks[index]['tokens']} tokens -> "
                f"{blocks[index]['slots']}",
                _merged_picture(merged, geometry, small),
            )
        )
    return figures


def drawn_prompts(reference: Reference) -> list[int]:
    """Choose a point and a box whose masks are drawn: ones whose mask is an object.

    The mask of an inner point and of the middle box, unless it is nearly empty or nearly all of
    the photo; then the first that is not, and the fullest below `_MOST` where none is. None of a
    model without a decoder.
    """
    if not reference.masks.size:
        return []
    rows, columns = reference.photo.geometry.inside(reference.masks.shape[-1])
    shares = reference.masks[:, 0, :rows, :columns].mean((1, 2))
    _, labels = prompt_grid(reference.photo.geometry)
    chosen = []
    for usual in _USUAL_PROMPTS:
        same_kind = np.flatnonzero(labels[:, 0] == labels[usual, 0]).tolist()
        fit = [p for p in (usual, *same_kind) if _LEAST <= shares[p] <= _MOST]
        below = [p for p in same_kind if shares[p] <= _MOST] or same_kind
        chosen.append(fit[0] if fit else max(below, key=lambda p: float(shares[p])))
    return sorted(chosen, key=lambda p: not _LEAST <= shares[p] <= _MOST)


def merged_tokens(
    slot_of_token: np.ndarray, grid: Sequence[int], height: int, width: int
) -> np.ndarray:
    """Return which tokens of the whole map share a slot with another, bool [height, width].

    Args:
        slot_of_token: [B', N] of one image: one map, or the windows in row-major order.
        grid: (H, W) of one map.
    """
    shared = np.stack([np.bincount(slots)[slots] > 1 for slots in slot_of_token])
    rows, columns = -(-height // grid[0]), -(-width // grid[1])
    tiles = shared.reshape(rows, columns, grid[0], grid[1])
    return tiles.transpose(0, 2, 1, 3).reshape(rows * grid[0], columns * grid[1])[:height, :width]


def _mask_figures(
    prompt: int,
    expected: np.ndarray,
    found: np.ndarray,
    photo: Photo,
) -> list[dict[str, str]]:
    """Reference, what ran here, and their difference, for one prompt."""
    geometry = photo.geometry
    coords, labels = prompt_grid(geometry)
    (height, width), (new_height, new_width) = geometry.original_size, geometry.input_size
    xy = coords[prompt] * np.array([width / new_width, height / new_height])
    is_box = labels[prompt, 0] == 2
    boxes = [tuple(float(v) for v in xy.ravel())] if is_box else []
    points = [] if is_box else [(float(xy[0, 0]), float(xy[0, 1]), 1)]
    figures = []
    what = "box" if is_box else "point"
    for title, mask in (
        (f"{what} {prompt}: PyTorch", expected),
        (f"{what} {prompt}: this backend", found),
        (
            f"{what} {prompt}: difference ({int((expected != found).sum())} pixels)",
            expected ^ found,
        ),
    ):
        signed = np.where(mask, 1.0, -1.0).astype(np.float32)
        full = binary_masks(signed, geometry)
        picture = draw_overlay(photo.rgb, [full], points=points, boxes=boxes)  # type: ignore[arg-type]
        figures.append(_figure(title, picture))
    return figures


def _energy_picture(energy: np.ndarray, geometry: ImageGeometry, photo: np.ndarray) -> Image.Image:
    """Energy as brightness from dark blue to yellow, over the photo's area."""
    values = _crop(energy, geometry)
    span = max(float(values.max() - values.min()), 1e-12)
    unit = ((values - values.min()) / span)[..., None]
    low, high = np.array([20, 20, 80]), np.array([255, 225, 60])
    pixels = (low + unit * (high - low)).astype(np.uint8)
    return Image.fromarray(pixels).resize(photo.shape[1::-1], Image.Resampling.NEAREST)


def _merged_picture(merged: np.ndarray, geometry: ImageGeometry, photo: np.ndarray) -> Image.Image:
    """The photo with the merged tokens shaded blue."""
    area = Image.fromarray(_crop(merged, geometry).astype(np.uint8) * 255)
    alpha = np.asarray(area.resize(photo.shape[1::-1], Image.Resampling.NEAREST))[..., None] / 255
    shade = np.array([40, 110, 255])
    mixed = photo * (1 - 0.55 * alpha) + shade * 0.55 * alpha
    return Image.fromarray(mixed.astype(np.uint8))


def _crop(token_map: np.ndarray, geometry: ImageGeometry) -> np.ndarray:
    """Keep the tokens [h, w] that the photo covers; the rest is padding of the input."""
    rows, columns = geometry.inside(token_map.shape[0])
    return token_map[:rows, :columns]


def _shrink(photo: np.ndarray) -> np.ndarray:
    image = Image.fromarray(photo)
    image.thumbnail((_LONG_SIDE, _LONG_SIDE))
    return np.asarray(image)


def _figure(title: str, image: Image.Image) -> dict[str, str]:
    image = image.convert("RGB")
    image.thumbnail((_LONG_SIDE, _LONG_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return {"title": title, "source": f"data:image/jpeg;base64,{data}"}
