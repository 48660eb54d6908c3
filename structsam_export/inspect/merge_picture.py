"""Pictures of merging: tinted groups over the photo, energy maps, captions and contact sheets.

Everything is drawn per token of the grid, at a whole number of pixels, so that no dot and no line
is lost when a sheet shows it smaller: it is drawn smaller instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from structsam_export.inspect.merged_map import MergedMap
from structsam_export.predict.overlay import mask_color

_OPACITY = 0.55
_PALETTE = np.array([mask_color(index) for index in range(48)], np.int64)
#: Neighbours differ at least so much where they can: RGB distance.
_APART = 150.0
_LOW, _HIGH = np.array([20, 20, 80]), np.array([255, 225, 60])
_LINE, _LINE_OPACITY = np.array([255, 255, 255]), 0.7
_CLIP = (1, 99)  # percentiles of the energy that are darkest and brightest
_PAPER, _INK, _FAINT, _ALARM = (250, 250, 250), (25, 25, 25), (110, 110, 110), (170, 20, 20)
_MIN_WIDTH = 380
_GAP = 8


@dataclass(frozen=True)
class Tile:
    """One merging block of a contact sheet.

    Args:
        panels: pictures side by side, all of one height.
        caption: lines below them; the first is emphasised.
    """

    panels: tuple[Image.Image, ...]
    caption: tuple[str, ...]


def draw_groups(photo: np.ndarray, found: MergedMap, token: int) -> Image.Image:
    """Tint the groups of merged tokens, and mark the token where each of them stands.

    Tokens of one group have one colour wherever they are, groups that touch have different ones,
    and tokens kept as they are stay clear. Windows are parted by thin lines.

    Args:
        photo: uint8 [h, w, 3], `token` pixels per token; the grid may reach beyond it.
        token: side of a token in pixels.
    """
    merged = _enlarge(found.merged, token, photo.shape)[..., None]
    tint = _enlarge(group_colors(found), token, photo.shape)
    pixels = np.where(merged, (1 - _OPACITY) * photo + _OPACITY * tint, photo)
    pixels = _with_window_lines(pixels, found.window, token)
    rim, core = (
        _tiled(_disc(token, radius), found.anchor & found.merged, photo.shape)[..., None]
        for radius in (0.28 * token, 0.16 * token)
    )
    pixels = pixels * (1 - rim)  # black, and a white core
    pixels = pixels * (1 - core) + 255 * core
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_energy(found: MergedMap, token: int, shape: Sequence[int]) -> Image.Image | None:
    """Draw the method's energy from dark blue to yellow; None when it has none.

    Args:
        shape: (h, w) of the picture in pixels; what lies beyond is padding of the input. Colours
            span what is shown, but for the lowest and the highest hundredth.
    """
    if found.energy is None:
        return None
    rows, columns = (-(-side // token) for side in shape[:2])
    shown = found.energy[:rows, :columns].astype(np.float64)
    low, high = np.percentile(shown, _CLIP)
    unit = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)[..., None]
    pixels = _enlarge(_LOW + unit * (_HIGH - _LOW), token, shape)
    pixels = _with_window_lines(pixels, found.window, token)
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_note(text: str, size: tuple[int, int]) -> Image.Image:
    """Return a blank panel of (width, height) that says why there is no picture."""
    panel = Image.new("RGB", size, (225, 225, 225))
    font = _font(max(12, min(18, size[0] // 20)))
    lines = _wrapped(text, font, size[0] - 20)
    draw = ImageDraw.Draw(panel)
    place = (size[0] / 2, size[1] / 2)
    draw.multiline_text(place, "\n".join(lines), _FAINT, font, anchor="mm", align="center")
    return panel


def draw_tile(tile: Tile) -> Image.Image:
    """Put the panels side by side, with the caption below."""
    width = sum(panel.width for panel in tile.panels) + _GAP * (len(tile.panels) - 1)
    height = max(panel.height for panel in tile.panels)
    full = max(width, _MIN_WIDTH)
    strip = _text(tile.caption, full, size=15, first=_INK, rest=_FAINT)
    picture = Image.new("RGB", (full, height + strip.height), _PAPER)
    left = (full - width) // 2
    for panel in tile.panels:
        picture.paste(panel, (left, 0))
        left += panel.width + _GAP
    picture.paste(strip, (0, height))
    return picture


def contact_sheet(
    tiles: Sequence[Tile], heading: Sequence[str], columns: int, alarm: str | None = None
) -> Image.Image:
    """Lay out tiles in rows under a heading.

    Args:
        heading: lines above the tiles; the first is emphasised.
        columns: most tiles in a row.
        alarm: a line in red that must not be overlooked.
    """
    drawn = [draw_tile(tile) for tile in tiles]
    columns = min(columns, len(drawn))
    cell = max(picture.width for picture in drawn)
    width = columns * cell + (columns + 1) * 2 * _GAP
    strips = [_text(heading, width, size=20, first=_INK, rest=_FAINT)]
    if alarm:
        strips.append(_text([alarm], width, size=18, first=_ALARM, rest=_ALARM))
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    head = sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (width, head + sum(heights) + 2 * _GAP * len(rows)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    for row, height in zip(rows, heights, strict=True):
        for place, picture in enumerate(row):
            sheet.paste(picture, (2 * _GAP + place * (cell + 2 * _GAP), top))
        top += height + 2 * _GAP
    return sheet


def group_colors(found: MergedMap) -> np.ndarray:
    """Choose a colour for the group of every token, int64 [H', W', 3]; unmerged tokens get 0.

    Greedy, groups with most neighbours first: a colour that is far from those of all neighbours,
    corners included, or the farthest there is.
    """
    _, group = np.unique(found.group, return_inverse=True)
    group = np.where(found.merged, group.reshape(found.group.shape), -1)
    neighbours = _neighbours(group)
    distance = np.linalg.norm(_PALETTE[:, None] - _PALETTE[None], axis=-1)
    chosen: dict[int, int] = {}
    groups = [int(index) for index in np.unique(group) if index >= 0]
    groups.sort(key=lambda index: -len(neighbours[index]))
    for turn, index in enumerate(groups):
        around = [chosen[other] for other in neighbours[index] if other in chosen]
        apart = distance[:, around].min(1) if around else np.full(len(_PALETTE), np.inf)
        apart = np.roll(np.minimum(apart, _APART), -turn)  # the first good one from here on
        chosen[index] = (int(apart.argmax()) + turn) % len(_PALETTE)
    table = np.zeros((group.max() + 2, 3), np.int64)  # the last row is for -1
    for index, color in chosen.items():
        table[index] = _PALETTE[color]
    return table[group]


def _neighbours(group: np.ndarray) -> defaultdict[int, list[int]]:
    """Which groups touch, corners included; -1 is no group."""
    inner = (slice(None, -1), slice(1, None))
    pairs = []
    for a, b in (
        (group[inner[0]], group[inner[1]]),
        (group[:, inner[0]], group[:, inner[1]]),
        (group[:-1, :-1], group[1:, 1:]),
        (group[:-1, 1:], group[1:, :-1]),
    ):
        touch = (a != b) & (a >= 0) & (b >= 0)
        pairs.append(np.stack([a[touch], b[touch]], -1))
    both = np.concatenate(pairs)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in np.unique(np.concatenate([both, both[:, ::-1]]), axis=0):
        found[int(first)].append(int(second))
    return found


def _enlarge(values: np.ndarray, token: int, shape: Sequence[int]) -> np.ndarray:
    """Repeat every token's value over its pixels, and keep the photo's pixels."""
    return values.repeat(token, 0).repeat(token, 1)[: shape[0], : shape[1]]


def _tiled(stamp: np.ndarray, where: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Print the stamp [token, token] on every token of `where`."""
    return np.kron(where.astype(np.float64), stamp)[: shape[0], : shape[1]]


def _disc(token: int, radius: float) -> np.ndarray:
    """Coverage in 0..1 of a disc in the middle of a token, [token, token]."""
    middle = (token - 1) / 2
    y, x = np.mgrid[:token, :token]
    return np.asarray(np.clip(max(radius, 0.7) + 0.5 - np.hypot(y - middle, x - middle), 0, 1))


def _with_window_lines(pixels: np.ndarray, window: tuple[int, int], token: int) -> np.ndarray:
    """Draw a line one pixel wide, or two on large pictures, where windows meet."""
    line = np.zeros(pixels.shape[:2], bool)
    for width in range(1 + token // 16):
        line[window[0] * token + width :: window[0] * token] = True
        line[:, window[1] * token + width :: window[1] * token] = True
    mixed = (1 - _LINE_OPACITY) * pixels + _LINE_OPACITY * _LINE
    return np.where(line[..., None], mixed, pixels)


def _text(
    lines: Sequence[str], width: int, size: int, first: tuple[int, ...], rest: tuple[int, ...]
) -> Image.Image:
    """A strip of wrapped lines; the first is a little larger."""
    big, small = _font(round(size * 1.15)), _font(size)
    laid = [(part, big, first) for line in lines[:1] for part in _wrapped(line, big, width - 16)]
    laid += [
        (part, small, rest) for line in lines[1:] for part in _wrapped(line, small, width - 16)
    ]
    step = math.ceil(size * 1.45)
    strip = Image.new("RGB", (width, step * len(laid) + size), _PAPER)
    draw = ImageDraw.Draw(strip)
    for index, (part, font, color) in enumerate(laid):
        draw.text((8, size * 0.4 + index * step), part, fill=color, font=font)
    return strip


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
