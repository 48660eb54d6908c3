from __future__ import annotations

import numpy as np
import pytest

from structsam_export.predict.overlay import draw_overlay, mask_color

GREY = 128


def photo(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_only_the_mask_is_coloured_and_its_edge_is_opaque() -> None:
    mask = square(600, 800, 100, 200, 300)
    picture = np.asarray(draw_overlay(photo(600, 800), [mask]))
    assert picture.shape == (600, 800, 3)
    assert (picture[~mask] == GREY).all()
    assert (picture[mask] != GREY).any(axis=-1).all()
    np.testing.assert_array_equal(picture[100, 350], mask_color(0))  # on the edge
    inner = 0.55 * GREY + 0.45 * np.array(mask_color(0))
    np.testing.assert_allclose(picture[250, 350], inner, atol=2)  # half transparent


def test_masks_have_distinct_colours() -> None:
    colors = np.array([mask_color(index) for index in range(12)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 40


def test_points_and_boxes_are_drawn_where_they_are() -> None:
    points = [(100.0, 150.0, 1), (400.0, 300.0, 0)]
    picture = np.asarray(draw_overlay(photo(600, 800), [], points, [(500, 50, 700, 250)]))
    red, green, _ = picture[150, 100].astype(int)
    assert green > red + 50
    red, green, _ = picture[300, 400].astype(int)
    assert red > green + 50
    changed = (picture != GREY).any(axis=-1)
    rows, columns = np.nonzero(changed[:, 450:])
    assert (rows.min(), columns.min() + 450) == (50, 500)
    assert (rows.max(), columns.max() + 450) == (249, 699)
    assert not changed[100:200, 550:650].any()


def test_line_width_follows_the_size() -> None:
    def width(scale: int) -> int:
        size = (600 * scale, 800 * scale)
        box = (100 * scale, 100 * scale, 700 * scale, 500 * scale)
        row = np.asarray(draw_overlay(photo(*size), [], [], [box]))[300 * scale, : 400 * scale]
        return int((row != GREY).any(axis=-1).sum())

    assert width(4) >= 2.5 * width(1) > 0


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    mask = square(30, 50, 10, 10, 10)
    picture = np.asarray(draw_overlay(photo(30, 50), [mask]))
    assert picture.shape == (300, 500, 3)
    painted = (picture != GREY).any(axis=-1)
    np.testing.assert_array_equal(painted, mask.repeat(10, 0).repeat(10, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (64, 48), (600, 800)])
def test_the_caption_is_a_strip_below_the_photo(size: tuple[int, int]) -> None:
    masks, points, boxes = [np.ones(size, bool)], [(0, 0, 1)], [(0, 0, size[1], size[0])]
    plain = draw_overlay(photo(*size), masks, points, boxes)
    picture = draw_overlay(photo(*size), masks, points, boxes, "masks carry no meaning")
    assert picture.width >= 320 and picture.height > plain.height
    left = (picture.width - plain.width) // 2
    above = picture.crop((left, 0, left + plain.width, plain.height))
    np.testing.assert_array_equal(np.asarray(above), np.asarray(plain))
    strip = np.asarray(picture)[plain.height :]
    assert (strip == 255).all(axis=-1).any(), "white letters"
    assert (strip[0] == strip[0, 0]).all(), "a margin above them"
    assert (strip[:, 0] == strip[0, 0]).all() and (strip[:, -1] == strip[0, 0]).all()


def test_an_empty_mask_and_the_input_are_left_alone() -> None:
    rgb = photo(600, 800)
    picture = np.asarray(draw_overlay(rgb, [np.zeros((600, 800), bool)], [(1, 1, 1)]))
    assert (rgb == GREY).all() and (picture[100:] == GREY).all()
