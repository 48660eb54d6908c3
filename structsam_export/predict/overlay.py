"""One picture that shows what was asked and what was found: masks, points and boxes on the photo.

Sizes follow the picture, so that lines are visible on a 20-megapixel photo and do not cover a
thumbnail. Small images are enlarged by a whole factor first.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from structsam_export.predict.prompts import Box, Point

Color = tuple[int, int, int]

_FILL_OPACITY = 0.45
_OUTLINE_LEVEL = 0.84 * 255  # of a Gaussian blur at one sigma inside a straight edge
_FOREGROUND, _BACKGROUND, _WHITE = (40, 190, 70), (225, 45, 45), (255, 255, 255)
_CAPTION_COLOR = (150, 20, 20)
_SHADES = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.8))  # (saturation, value) in turn
_MIN_LONG_SIDE, _MIN_CAPTION_WIDTH = 480, 320
_SUPERSAMPLING = 4


def mask_color(index: int) -> Color:
    """Return a vivid colour; the golden angle keeps neighbours apart for any number of masks."""
    hue = (0.58 + index * 0.618034) % 1.0
    saturation, value = _SHADES[index % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_overlay(
    rgb: np.ndarray,
    masks: Iterable[np.ndarray],
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    caption: str | None = None,
) -> Image.Image:
    """Draw masks, prompts and a caption over a photo.

    Args:
        rgb: uint8 [H, W, 3].
        masks: bool [H, W] each; taken one by one, so a generator keeps memory low.
        points: (x, y, label) in pixels of the photo: a green star for 1, a red dot for 0.
        boxes: (x0, y0, x1, y1) in pixels of the photo, in the colour of the mask of that index.
        caption: text on a strip below the photo, for what must not be overlooked.

    Returns:
        An RGB picture, enlarged by a whole factor when the photo is small, taller by the caption.
    """
    height, width = rgb.shape[:2]
    factor = max(1, math.ceil(_MIN_LONG_SIDE / max(height, width)))
    size = (width * factor, height * factor)
    unit = max(size) / 1000  # all sizes below are in thousandths of the long side
    canvas = Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.NEAREST)
    for index, mask in enumerate(masks):
        _paint_mask(canvas, mask, factor, mask_color(index), unit)
    for index, box in enumerate(boxes):
        _paint_box(canvas, [factor * value for value in box], mask_color(index), unit)
    for x, y, label in points:
        _paint_point(canvas, ((x + 0.5) * factor, (y + 0.5) * factor), label, unit)
    return canvas if caption is None else _with_caption(canvas, caption)


def _paint_mask(
    canvas: Image.Image, mask: np.ndarray, factor: int, color: Color, unit: float
) -> None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return
    sigma = max(1.3, 2 * unit)
    margin = math.ceil(3 * sigma / factor)  # so that the blur below sees what surrounds the mask
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    part = mask[top : rows[-1] + 1 + margin, left : columns[-1] + 1 + margin]
    inside = Image.fromarray(part.astype(np.uint8) * 255)
    inside = inside.resize(
        (inside.width * factor, inside.height * factor), Image.Resampling.NEAREST
    )
    at = (int(left) * factor, int(top) * factor)
    canvas.paste(color, at, inside.point(lambda value: value * _FILL_OPACITY))
    blurred = np.asarray(inside.filter(ImageFilter.GaussianBlur(sigma)))
    outline = (np.asarray(inside) > 0) & (blurred < _OUTLINE_LEVEL)
    canvas.paste(color, at, Image.fromarray(outline.astype(np.uint8) * 255))


def _paint_box(canvas: Image.Image, box: Sequence[float], color: Color, unit: float) -> None:
    line = max(2, round(3 * unit))
    border = line + 2 * max(1, round(unit))
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = (round(value) for value in box)
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
    for width, tint in ((border, _WHITE), (line, color)):
        inset = (border - width) // 2
        edge = min((x1 - x0) // 2, (y1 - y0) // 2, inset)
        draw.rectangle((x0 + edge, y0 + edge, x1 - edge, y1 - edge), outline=tint, width=width)


def _paint_point(canvas: Image.Image, center: tuple[float, float], label: int, unit: float) -> None:
    """Draw the marker on a larger tile and shrink it: Pillow's shapes have no anti-aliasing."""
    radius = max(9.0, 14 * unit)
    side = 2 * math.ceil(radius * 1.25) + 1
    middle, big = side * _SUPERSAMPLING / 2, radius * _SUPERSAMPLING
    tile = Image.new("RGBA", (side * _SUPERSAMPLING,) * 2, (*_WHITE, 0))
    draw = ImageDraw.Draw(tile)
    if label == 1:
        draw.polygon(_star(middle, big * 1.2), fill=_WHITE)
        draw.polygon(_star(middle, big * 0.85), fill=_FOREGROUND)
    else:
        for size, tint in ((big * 0.8, _WHITE), (big * 0.55, _BACKGROUND)):
            draw.ellipse((middle - size, middle - size, middle + size, middle + size), fill=tint)
    tile = tile.resize((side, side), Image.Resampling.LANCZOS)
    left, top = (math.floor(value) - side // 2 for value in center)
    canvas.paste(tile, (left, top), tile)


def _star(middle: float, radius: float) -> list[tuple[float, float]]:
    corners = []
    for corner in range(10):
        length = radius if corner % 2 == 0 else radius * 0.45
        angle = math.pi * corner / 5
        corners.append((middle + length * math.sin(angle), middle - length * math.cos(angle)))
    return corners


def _with_caption(canvas: Image.Image, caption: str) -> Image.Image:
    """Put the caption below the photo, wrapped to the width (a narrow photo gets a margin)."""
    width = max(canvas.width, _MIN_CAPTION_WIDTH)
    size = max(14, round(max(width, canvas.height) / 45))
    size = min(size, width // 14)  # a tall photo leaves little width for its words
    font = ImageFont.load_default(size)
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * size:
            lines.append(word)
        else:
            lines[-1] = longer
    strip = round(len(lines) * size * 1.35 + size * 0.8)
    picture = Image.new("RGB", (width, canvas.height + strip), _CAPTION_COLOR)
    picture.paste((32, 32, 32), (0, 0, width, canvas.height))
    picture.paste(canvas, ((width - canvas.width) // 2, 0))
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        y = canvas.height + size * 0.4 + (index + 0.5) * size * 1.35
        draw.text((width / 2, y), line, fill=_WHITE, font=font, anchor="mm")
    return picture
